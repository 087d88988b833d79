"""Measurements of edgepp, one script per question: ``python -m bench.NAME --help``.

METHODOLOGY.md defines the numbers.
"""
