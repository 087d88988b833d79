"""The tensors of a model folder: which safetensors files count, where each tensor lies, which parts a process needs."""
