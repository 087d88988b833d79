"""Simulated pipelines: the engine's own core with a clock and modelled costs, for clusters that nobody has."""
