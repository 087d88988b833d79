"""Models from a hub over HTTP: listings, byte ranges of files, and the snapshots on this disk."""
