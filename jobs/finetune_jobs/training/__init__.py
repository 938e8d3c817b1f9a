"""Training of a model or an adapter.

``learning_curve`` trains on parts of the examples; the forecast from their losses is computed in the module of that
name in the package readiness. ``division`` is about processes that train together, not about the training and test
splits.
"""
