"""What edgepp asks of the operating system: to run as a service, and not to sleep while there is work."""
