"""Access to the HTTP server: whom it admits, and limits per client; one ASGI middleware per file."""
