"""The ONNX Runtime backend, the default on a CPU: Llama-family layers as one graph, built from MLX weights."""
