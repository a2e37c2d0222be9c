"""The ruler: paired timing, the machine under a figure, memory, peaks, tables."""
