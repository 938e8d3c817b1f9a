"""What stands on the local cluster for the demo, the cluster tests and the benchmarks: operator, object store, data."""
