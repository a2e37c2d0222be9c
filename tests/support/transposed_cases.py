"""Random transposed convolutions, and ``F.conv_transpose1d`` in float64 as what to expect."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from engines import Engine, Engines
from torch import Tensor

from sparseconv import KernelCSR, sparse_conv_transpose1d
from sparseconv.testing import Expected, error_bound


class Transposed(NamedTuple):
    """One transposed convolution; its ``repr`` evaluates to the same case."""

    n: int
    shape: tuple[int, int, int]  # of the weight
    length: int
    groups: int
    stride: int
    padding: int
    output_padding: int
    dilation: int
    dtype: str
    bias: bool
    density: float
    block: int
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        names = ("stride", "padding", "output_padding", "groups", "dilation")
        return {name: getattr(self, name) for name in names}

    @property
    def output_length(self) -> int:
        reach = self.dilation * (self.shape[2] - 1) + 1 + self.output_padding
        return (self.length - 1) * self.stride - 2 * self.padding + reach

    def pattern(self) -> KernelCSR:
        generator = torch.Generator().manual_seed(self.seed)
        rows, columns, taps = self.shape
        leaders = torch.rand(
            -(-rows // self.block), -(-columns // self.block), taps, generator=generator
        )
        mask = (leaders < self.density).repeat_interleave(self.block, 0)
        return KernelCSR.from_mask(mask.repeat_interleave(self.block, 1)[:rows, :columns])

    def tensors(self) -> list[Tensor | None]:
        """Input, values, bias and the output's gradient."""
        generator, channels = torch.Generator().manual_seed(self.seed), self.shape[1] * self.groups
        sizes = (
            (self.n, self.shape[0], self.length), (self.pattern().nnz,), (channels,),
            (self.n, channels, self.output_length),
        )  # fmt: skip
        drawn = [torch.randn(s, generator=generator).to(getattr(torch, self.dtype)) for s in sizes]
        return [t if self.bias or i != 2 else None for i, t in enumerate(drawn)]


def random_transposed(rng: random.Random, **fixed: Any) -> Transposed:
    while True:
        groups, stride = rng.choice((1, 1, 1, 2, 3)), rng.choice((1, 2, 2, 3, 4, 5, 8, 19))
        taps, dilation = rng.choice((1, 2, 3, 4, 5, 7, 10, 16)), rng.choice((1, 1, 1, 2, 3))
        drawn = {
            "n": rng.choice((0, 1, 1, 2, 3, 17)),
            "shape": (groups * rng.randint(1, 6), rng.randint(1, 5), taps),
            "length": rng.choice((1, 2, 3, 7, 15, 16, 17, 29, 31, 64, 97)),
            "groups": groups, "stride": stride, "padding": rng.randint(0, taps),
            "output_padding": rng.randrange(max(stride, dilation)), "dilation": dilation,
            "dtype": rng.choice(("float32", "float32", "float64", "bfloat16", "float16")),
            "bias": rng.random() < 0.5, "density": rng.choice((0.05, 0.3, 1.0)), "block": 1,
            "seed": rng.randrange(10**6),
        }  # fmt: skip
        case = Transposed(**(drawn | fixed))
        if case.output_length > 0:
            return case


def compute(case: Transposed, *given: Any, backend: str = "auto") -> list[Tensor]:
    """Output, and gradients of the input, the values and, if there is one, the bias."""
    *leaves, grad = (None if t is None else t.detach() for t in given)
    leaves = [None if t is None else t.requires_grad_() for t in leaves]
    y = sparse_conv_transpose1d(
        *leaves[:2], case.pattern(), leaves[2], **case.options, backend=backend
    )
    found = torch.autograd.grad(y, [t for t in leaves if t is not None], grad)
    return [y.detach(), *found]


def wanted(case: Transposed) -> list[Expected]:
    """What torch computes in float64 with the dense weight, and the bounds for the kernels."""
    mask = case.pattern().to_mask()

    def of(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        given = [None if t is None else change(t).double() for t in case.tensors()]
        x, values, bias = (None if t is None else t.requires_grad_() for t in given[:3])
        weight = torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, values)
        y = F.conv_transpose1d(x, weight, bias, **case.options)
        leaves = [t for t in (x, values, bias) if t is not None]
        return [y.detach(), *torch.autograd.grad(y, leaves, given[3])]

    sums = zip(of(lambda t: t), of(torch.abs), of(torch.ones_like), strict=True)
    dtype = getattr(torch, case.dtype)
    return [Expected(e, error_bound(e, magnitude, n, dtype)) for e, magnitude, n in sums]


def check(case: Transposed, engines: Engines) -> None:
    expected = wanted(case)
    for engine in engines():
        check_engine(case, engine, expected)


def check_engine(case: Transposed, engine: Engine, expected: list[Expected]) -> None:
    given = [None if t is None else t.to(engine.device) for t in case.tensors()]
    backend = "auto" if engine.backend == "cuda" else engine.backend
    # Triton's interpreter cuts bfloat16 off where a GPU rounds: up to one unit, not half.
    interpreted = engine[:2] == ("triton", "cpu") and case.dtype == "bfloat16"
    cut = torch.finfo(torch.bfloat16).eps / 2 if interpreted else 0.0
    names = ("output", "dgrad", "wgrad", "bias")
    found = zip(names, compute(case, *given, backend=backend), expected, strict=False)
    for name, got, (exact, bound) in found:
        assert (got.shape, got.dtype) == (exact.shape, given[0].dtype), (name, engine, case)
        error = (got.cpu().double() - exact).abs()
        limit = bound + cut * (exact.abs() + bound)
        assert (error <= limit).all(), f"{name} on {engine}, {error.max():.3g} off: {case!r}"
