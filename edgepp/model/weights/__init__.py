"""The tensors of a model folder: safetensors files, places of the tensors, and the parts that a process needs."""
