"""The proxy in front of a model server: HAProxy, which speaks TLS and lets in who has a key, and what starts it."""
