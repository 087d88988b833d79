"""Ollama's API: chat, generate, and facts about the model."""
