"""Traces of requests: what coordinator and stages did for a request and when, on one clock."""
