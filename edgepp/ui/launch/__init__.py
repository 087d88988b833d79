"""Settings with which clients use this cluster, and the ways to print, start, write and undo them."""
