"""What became of a stage's Job and of its pods, in the words of a status."""
