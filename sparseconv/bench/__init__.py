"""Measuring: named cases, paired timing, rivals; nothing here is imported by the kernels' users."""
