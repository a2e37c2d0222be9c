"""Measure named cases against baselines, and whole networks; not for users to import."""
