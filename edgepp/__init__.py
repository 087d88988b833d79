"""edgepp: one language model on the machines you have."""

__version__ = "0.1.0"
