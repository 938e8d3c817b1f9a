"""The reports' common frame: pages for people, their charts, and the index of a run."""
