"""config.json and generation_config.json, read once into typed objects: what backends, planner and fingerprint know."""
