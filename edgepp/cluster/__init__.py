"""Clusters of nodes: identity, pairing, discovery and membership."""
