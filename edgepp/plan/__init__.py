"""Predictions without a run: rooflines of hardware, and the speed of a model on a cluster."""
