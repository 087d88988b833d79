"""Shared parts of the scripts: entry, rounds and medians, measured processes, slow links, a quiet machine."""
