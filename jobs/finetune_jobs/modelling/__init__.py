"""Models and prompts as training, export and evaluation all see them."""
