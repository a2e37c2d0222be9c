"""Measurements: paired timing, the machine, memory, peaks, tables."""
