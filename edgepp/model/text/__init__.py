"""Text to token ids and back: chat templates and tokenizers, run in a process with limits, and detokenizers."""
