"""What can only be shown on a GPU, and what of it can be shown without."""
