"""Provide the portable GPU kernels, written in Triton; imported only when they are needed.

``schemas`` registers the functions of ``launch`` as the ops ``triton_*``.
"""

from __future__ import annotations

from triton.runtime.jit import JITFunction

from sparseconv.ops.triton import kernels

# Triton reads TRITON_INTERPRET when it decorates; with 1 the kernels run on the CPU, slowly.
INTERPRETED = not isinstance(kernels.correlate, JITFunction)
