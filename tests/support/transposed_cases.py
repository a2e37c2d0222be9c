"""The transposes of random convolutions, and what ``F.conv_transpose1d`` makes of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from engines import Engines, assert_within
from torch import Tensor

from sparseconv import sparse_conv_transpose1d
from sparseconv.testing import Case, Expected, error_bound, random_case


def random_transposed(rng: random.Random, **fixed: Any) -> Case:
    """Draw a convolution; its length has a remainder, so the transpose has an output padding."""
    drawn = {"stride": rng.choice((1, 2, 2, 3, 4, 5, 8, 19)), "padding": rng.randint(0, 3)}
    return random_case(rng, **{"padding_mode": "zeros", **drawn, **fixed})


def options(case: Case) -> dict[str, Any]:
    """Return keyword arguments for ``sparse_conv_transpose1d``."""
    names = ("stride", "padding", "groups", "dilation")
    found = {name: getattr(case, name) for name in names}
    rest = case.length + 2 * case.padding - case.dilation * (case.kernel_size - 1) - 1
    return found | {"output_padding": rest % case.stride}


def given(case: Case) -> list[Tensor | None]:
    """Return the input, values, bias and the output's gradient of the transpose."""
    grad, values, _, x = case.tensors()
    generator = torch.Generator().manual_seed(case.seed)
    bias = torch.randn(case.in_channels, generator=generator).to(x.dtype) if case.bias else None
    return [x, values, bias, grad]


def gradients(run: Callable[..., Tensor], tensors: list[Tensor | None]) -> list[Tensor]:
    """Return the output, and the gradients of input, values and, if there is one, bias."""
    *leaves, grad = (None if t is None else t.detach() for t in tensors)
    leaves = [None if t is None else t.requires_grad_() for t in leaves]
    y = run(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t is not None], grad)]


def compute(case: Case, tensors: list[Tensor | None], backend: str = "auto") -> list[Tensor]:
    def run(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        pattern = case.make_pattern()
        return sparse_conv_transpose1d(x, values, pattern, bias, **options(case), backend=backend)

    return gradients(run, tensors)


def wanted(case: Case) -> list[Expected]:
    mask = case.make_pattern().to_mask()

    def run(x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        weight = torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, values)
        return F.conv_transpose1d(x, weight, bias, **options(case))

    def of(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return gradients(run, [None if t is None else change(t).double() for t in given(case)])

    sums = zip(of(lambda t: t), of(torch.abs), of(torch.ones_like), strict=True)
    dtype = getattr(torch, case.dtype)
    return [Expected(e, error_bound(e, magnitude, n, dtype)) for e, magnitude, n in sums]


def check(case: Case, engines: Engines) -> None:
    expected = wanted(case)
    for engine in engines():
        tensors = [None if t is None else t.to(engine.device) for t in given(case)]
        found = compute(case, tensors, "auto" if engine.backend == "cuda" else engine.backend)
        assert_within(found, expected, engine, case)
