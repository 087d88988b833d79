"""The HTTP server of a cluster: the APIs of OpenAI, Anthropic and Ollama over one request model."""
