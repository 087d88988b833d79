"""The stage process: runs one layer range, in a compute thread and a control thread."""
