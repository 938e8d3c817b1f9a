"""Proving that a server serves the evaluated artifact: what it is asked, and what its answers must be."""
