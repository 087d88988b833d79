"""Models: names and cards, configuration, weights on disk, downloads, tokenizers. Uses no backend."""
