"""What the commands print: tables, progress, events, errors, and the interactive chat."""
