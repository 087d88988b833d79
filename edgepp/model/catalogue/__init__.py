"""The models that edgepp knows by name, and what a MODEL on a command line stands for."""
