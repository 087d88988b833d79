"""Who may use the HTTP server, and how much of it: one ASGI middleware a file."""
