"""A stage: the process that runs one layer range, with its compute thread and its control thread."""
