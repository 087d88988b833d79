"""The HTTP server of a cluster: the APIs of OpenAI, Anthropic and Ollama over one request model.

Each API is a package with ``routes(service)``, whose routes are ``Operation``s: method, path, handler, error form,
and for /openapi.json a summary and the type that decodes the body. ``openapi.described`` adds /openapi.json to all
routes together.
"""
