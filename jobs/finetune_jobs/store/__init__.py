"""Clients of what holds files: S3, OCI registries and the Hugging Face hub."""
