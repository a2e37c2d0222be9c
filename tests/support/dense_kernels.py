"""Kernels to measure that are not ours: dense PyTorch in their place, right or spoilt."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.bench.baselines import Calls
from benchmarks.bench.cases import Problem
from sparseconv.reference import conv1d_dense


def dense_calls(problem: Problem, **wrong: Callable[[Tensor], Tensor]) -> Calls:
    """The three computations by autograd on the dense path; ``wrong`` spoils some."""
    x, values = (t.detach().clone().requires_grad_() for t in (problem.x, problem.values))
    y = conv1d_dense(x, values, problem.pattern, None, problem.geometry)
    dgrad, wgrad = torch.autograd.grad(y, (x, values), problem.grad)
    results = {"fprop": y.detach(), "dgrad": dgrad, "wgrad": wgrad}

    def call(name: str) -> Tensor:
        return wrong.get(name, torch.clone)(results[name])

    return {name: lambda name=name: call(name) for name in results}


def one_wrong(result: Tensor) -> Tensor:
    """Spoil the last element."""
    result = result.clone()
    result.view(-1)[-1] += 1e-3 * result.abs().max()
    return result
