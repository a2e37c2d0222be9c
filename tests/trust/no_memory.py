"""Asks an op for more scratch memory than there is: run by a test.

Prints, as JSON, what the op raised; the next call, which needs little, must compute as ever.
"""

from __future__ import annotations

import json

import torch
from child import limit_memory, refuses

import sparseconv  # noqa: F401  loads the ops

pool = torch.ops.sparseconv.adaptive_avg_pool1d
long, short = torch.zeros(1, 1, 2**24), torch.arange(6.0).view(1, 1, 6)
limit_memory(0.5)
refused, error = refuses(lambda: pool(long, 1))  # 64 bytes of scratch per sample and bin
assert refused
assert pool(short, 2).tolist() == [[[1.0, 4.0]]]
print(json.dumps([type(error).__name__, str(error).splitlines()[0]]))
