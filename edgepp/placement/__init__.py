"""Placement of layers on nodes: a search over memory, rates and links. Pure functions."""
