"""Output of the commands: tables, progress, events, errors, and the interactive chat."""
