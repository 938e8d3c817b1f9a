"""Distillation: prompts in, examples with a teacher's answers out. ``distil.distil`` is the way in."""
