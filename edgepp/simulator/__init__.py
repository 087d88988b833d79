"""Simulates pipelines: the engine's own core with a clock and modelled costs, for clusters of any size."""
