"""Which node runs which layers: a search over memory, rates and links. Pure functions."""
