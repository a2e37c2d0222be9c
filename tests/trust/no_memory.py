"""Asks an op for more scratch memory than there is: run by a test.

Prints, as JSON, what the op raised; the next call, which needs little, must compute as ever.
"""

from __future__ import annotations

import json

import torch
from child import limit_memory, refuses

import sparseconv as sc


def main() -> None:
    taps, dilation = 2**19, 32  # so far apart that each tap has its own tile
    pattern = sc.KernelCSR.from_positions(torch.tensor([5]), (1, 1, taps))
    x, values = torch.ones(1, 1, (taps - 1) * dilation + 1), torch.tensor([2.0])
    limit_memory(0.5)
    refused, error = refuses(lambda: sc.sparse_conv1d(x, values, pattern, dilation=dilation))
    assert refused
    few = sc.KernelCSR.full((1, 1, 1))
    assert sc.sparse_conv1d(x[..., :3], values, few).tolist() == [[[2.0, 2.0, 2.0]]]
    print(json.dumps([type(error).__name__, str(error).splitlines()[0]]))


if __name__ == "__main__":
    main()
