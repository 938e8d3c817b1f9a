"""The main job on a real cluster, from CSV to a verified, answering endpoint: ``python -m hack.demo``."""
