"""Who may take part in a cluster and who is there: identity, pairing, discovery, membership."""
