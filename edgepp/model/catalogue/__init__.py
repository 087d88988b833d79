"""The models that edgepp has by name, and the meaning of a MODEL argument."""
