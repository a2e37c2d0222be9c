"""What must hold before any time means something: right results, and the same again.

The test suite says more of it, where it runs on a GPU: every case of tests/kernels.
"""

from __future__ import annotations

import random

import torch

from benchmarks.gpu.layer import on
from benchmarks.gpu.target import Target
from sparseconv import sparse_conv1d
from sparseconv.bench.run import sparse_calls
from sparseconv.testing import expected_dgrad, expected_fprop, expected_wgrad, random_case


def random_cases(target: Target, backend: str, count: int) -> str:
    """All three computations of random cases within their computed bounds of float64."""
    rng = random.Random(0)
    for _ in range(count):
        case = random_case(rng)
        tensors, pattern = case.tensors(), case.make_pattern()
        x, values = (t.to(target.device).requires_grad_() for t in (tensors.input, tensors.values))
        bias = None if tensors.bias is None else tensors.bias.to(target.device)
        y = sparse_conv1d(x, values, pattern, bias, **case.options, backend=backend)
        dx, dw = torch.autograd.grad(y, (x, values), tensors.grad.to(target.device))
        for got, expected in ((y, expected_fprop), (dx, expected_dgrad), (dw, expected_wgrad)):
            exact, bound = expected(case, tensors)
            error = (got.detach().cpu().double() - exact).abs()
            assert (error <= bound).all(), f"{expected.__name__}: {case!r}"
    return f"{count} within the computed bounds of float64"


def same_bits(target: Target, backend: str, length: int) -> str:
    """Calls that are repeated, and graphs that are replayed with other data, give the same bits."""
    problem = on(target.device, target.layer(length).build())
    for computation, call in sparse_calls(target.ops(backend), problem).items():
        first = call()
        assert all(call().equal(first) for _ in range(target.sizes.repeats)), computation
        if target.graphs:
            replay, captured = target.capture(call)
            for _ in range(target.sizes.repeats):
                for tensor in problem[:3]:
                    tensor.normal_()
                replay()
                assert captured.equal(call()), f"{computation}, replayed"
    return f"{target.sizes.repeats} calls" + " and replays" * target.graphs
