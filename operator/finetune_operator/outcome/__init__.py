"""The outcome of a stage's Job and of its pods: state, reason and message."""
