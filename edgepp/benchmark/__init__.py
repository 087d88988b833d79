"""What is measured of a cluster and how it is reported: `edgepp bench`. bench/METHODOLOGY.md defines the numbers."""
