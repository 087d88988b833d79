"""The MLX backend, the reference: any mlx-lm family that fits a layer pipeline, on Metal or on a CPU."""
