"""Who is there, who may be, and who runs what: identity, pairing, discovery, membership, placement."""
