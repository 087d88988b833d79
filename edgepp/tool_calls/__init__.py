"""Tool calls in the forms of the families of models: as prompt, grammar and parser."""
