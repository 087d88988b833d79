"""How a machine becomes a member of a cluster: invitation codes (SPAKE2) and tokens."""
