"""The platform on the local cluster for demo, cluster tests and benchmarks: operator, object store, data."""
