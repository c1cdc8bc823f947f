"""Throw-away hosts for tests, demo and benchmarks: namespaces of our own, nothing of the machine is touched."""
