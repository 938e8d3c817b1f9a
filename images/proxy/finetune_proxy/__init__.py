"""The proxy in front of a model server: HAProxy, which lets in who has a key, and the program that starts it."""
