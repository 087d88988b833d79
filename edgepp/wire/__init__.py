"""The bytes between processes: messages, codecs and sockets. Knows no model."""
