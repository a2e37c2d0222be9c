"""Measurements and reports: paired timing, the machine, memory, records, tables and pages."""
