"""Asking a model behind an OpenAI-compatible URL: teachers, judges, other models to compare with."""
