"""Tensors whose offsets, or whose number of elements, no int32 holds: run by a test.

    python tests/trust/large_strides.py offsets|fprop|dgrad|wgrad|bytes FOLDER

``offsets`` lays small tensors across a sparse file of 34 GB, of which only the touched pages exist;
results must be those of contiguous copies. It also computes a series of more than 2**31 samples,
most of them skipped by the stride. The others compute more than 2**31 elements (``bytes``: bytes)
from a series that all of the batch shares: each of the batch must get the same.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from engines import ISAS, Engine
from op_arguments import op_calls
from torch import Tensor

from sparseconv import KernelCSR
from sparseconv.core.geometry import Geometry
from sparseconv.ops.backends import extension
from sparseconv.testing import Case

OPS = torch.ops.sparseconv
KERNELS = Engine("cpp").kernels
FAR = 2**31


class Sparse:
    """A file of more than 2**32 float64 that takes only the pages which are written."""

    def __init__(self, folder: Path) -> None:
        path, size = folder / "sparse", 8 * (2 * FAR + 2**20)
        with path.open("wb") as file:
            file.truncate(size)
        self.memory = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
        path.unlink()  # the mapping keeps it

    def spread(self, x: Tensor, dim: int, offset: int = 0) -> Tensor:
        """The same numbers; neighbours along ``dim`` lie so far apart that the last is past 2**31.

        ``offset`` elements, past 2**31 as well, may come first.
        """
        steps = list(x.contiguous().stride())
        steps[dim] = FAR // (x.shape[dim] - 1) + 7
        return self.memory.view(x.dtype).as_strided(x.shape, steps, offset).copy_(x)


def strides(folder: Path) -> tuple[int, list[str]]:
    sparse, calls, faults = Sparse(folder), 0, []
    for dtype in ("float32", "float64", "bfloat16", "float16"):
        mode, stride = ("reflect", 2) if dtype == "float64" else ("zeros", 1)
        case = Case(2, 3, 4, 5, 40, stride, (3, 2), padding_mode=mode, dtype=dtype, density=0.5)
        pattern = case.make_pattern()
        geometry = case.geometry
        for name, args in op_calls(case.tensors(), pattern, geometry, 40).items():
            places = [
                (i, dim, offset)
                for i, a in enumerate(args)
                if isinstance(a, Tensor) and a.is_floating_point()
                for dim in range(a.dim())
                if a.shape[dim] > 1
                for offset in ((0, FAR) if dim == 0 else (0,))
            ]
            for i, dim, offset in places:
                far = sparse.spread(args[i], dim, offset)
                for isa in ISAS:
                    os.environ["SPARSECONV_CPU_ISA"] = isa
                    assert extension.isa() == isa
                    got = getattr(OPS, name)(*args[:i], far, *args[i + 1 :])
                    calls += 1
                    if not got.equal(getattr(OPS, name)(*args)):
                        faults.append(f"{name} argument {i} dim {dim} on {isa}")
    return calls, faults


def length(folder: Path) -> tuple[int, list[str]]:
    stride, samples = 2**26, 33
    x = Sparse(folder).memory.view(torch.float32)[: FAR + stride].view(1, 1, -1)
    series = x[..., ::stride].copy_(torch.arange(1.0, samples + 1))
    pattern, faults = KernelCSR.full((1, 1, 1)), []
    geometry = Geometry.of((1, 1, 1), stride, (0, 0), 1, 1, "zeros")
    for isa in ISAS:
        os.environ["SPARSECONV_CPU_ISA"] = isa
        assert extension.isa() == isa
        y = KERNELS.fprop(x, torch.tensor([2.0]), None, pattern, geometry)
        dw = KERNELS.wgrad(torch.ones_like(y), x, pattern, geometry)
        if not y.equal(2 * series) or dw.item() != series.sum():
            faults.append(f"{y.flatten().tolist()}, {dw.item()} on {isa}")
    return 2 * len(ISAS), faults


def many(what: str) -> tuple[int, list[str]]:
    """``(N, 1, 64)`` from one series; the last of the batch begins past 2**31."""
    length, pattern = 64, KernelCSR.full((1, 1, 3))
    geometry = Geometry.of((1, 1, 3), 1, (1, 1), 1, 1, "zeros")
    dtype = {"bytes": torch.float32, "wgrad": torch.float64}.get(what, torch.bfloat16)
    n = (FAR if what != "bytes" else FAR // 4) // length + 3
    series = torch.arange(1, length + 1, dtype=dtype)[None, None].expand(n, 1, length)
    if what == "wgrad":
        ones = torch.ones((), dtype=dtype).expand(n, 1, length)
        total = n * length * (length + 1) // 2
        # The outer taps miss a sample of the other end. All sums are below 2**53.
        right = [total - n * length, total, total - n]
        return 1, [what] * (KERNELS.wgrad(ones, series, pattern, geometry).tolist() != right)
    values = torch.tensor([1, 2, 3], dtype=dtype)

    def compute(series: Tensor) -> Tensor:
        if what == "dgrad":
            return KERNELS.dgrad(series, values, pattern, geometry, length)
        return KERNELS.fprop(series, values, None, pattern, geometry)

    first = compute(series[:1])
    equal = all(bool((part == first).all()) for part in compute(series).split(2**20))
    return 1, [f"{what}: not the same {n} times"] * (not equal)


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    parts = [strides(folder), length(folder)] if what == "offsets" else [many(what)]
    done, wrong = zip(*parts, strict=True)
    print(json.dumps({"calls": sum(done), "faults": [fault for part in wrong for fault in part]}))
