"""Benchmark named cases and whole networks against baselines; not for users to import."""
