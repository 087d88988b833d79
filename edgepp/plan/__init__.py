"""Arithmetic before anything runs: what hardware could do at best, and what a cluster will do."""
