"""Anthropic's API: messages, and the count of a prompt's tokens."""
