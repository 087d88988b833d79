"""What is measured of a cluster and how it is reported: `edgepp bench`. The numbers: bench/METHODOLOGY.md."""
