"""Tool calls: how each family of models writes them, as prompt, grammar and parser."""
