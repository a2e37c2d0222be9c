"""Benchmark named cases and whole networks against baselines; not part of the public API."""
