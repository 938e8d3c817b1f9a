"""Training of a model or an adapter.

``learning_curve`` trains on parts of the examples; what the losses forecast is computed in the package readiness, in
the module of that name. ``division`` is about the processes that train together, not about training and test.
"""
