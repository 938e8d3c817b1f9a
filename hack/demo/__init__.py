"""The main workflow on a real cluster, from a CSV file to a verified endpoint: ``python -m hack.demo``."""
