"""Pairing: how a machine becomes a member of a cluster, with an invitation code (SPAKE2) or a token."""
