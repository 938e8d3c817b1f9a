"""Answers of base, tuned model and artifact, and what they are worth."""
