"""What a model is and where its tensors lie. Knows no backend, no socket and no process."""
