"""Checks of `edgepp selftest`: is a cluster exact, fast, safe, and does it survive faults."""
