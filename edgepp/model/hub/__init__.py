"""A model hub over HTTP: listings, byte ranges of files, and what of a repository is on this disk."""
