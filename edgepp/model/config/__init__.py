"""config.json and generation_config.json, checked and read once into typed objects."""
