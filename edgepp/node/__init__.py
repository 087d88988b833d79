"""A machine that joined, and the stage process it runs."""
