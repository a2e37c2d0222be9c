"""The portable GPU kernels, in Triton. Imported only when they are to run: Triton is an extra.

``schemas`` registers the functions of ``launch`` as what the ops ``triton_*`` run.
"""

from __future__ import annotations

from triton.runtime.jit import JITFunction

from sparseconv.ops.triton import kernels

# Triton decides when it decorates: with TRITON_INTERPRET=1 the kernels run on the CPU, slowly.
INTERPRETED = not isinstance(kernels.correlate, JITFunction)
