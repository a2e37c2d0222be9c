"""Measuring: named cases against baselines, and whole networks; users import none of it."""
