"""Measuring: named cases beside baselines, and whole networks; users import none of it."""
