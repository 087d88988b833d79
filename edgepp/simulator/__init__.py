"""Simulation of pipelines: the engine's own core with a simulated clock and modelled costs."""
