"""Steps of models that the backend of ``torch.compile`` compiles."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import sparseconv as sc
from sparseconv.compiler import CompiledReport, compiled_report, sparseconv
from sparseconv.ops.backends import extension
from sparseconv.testing import error_bound

Run = Callable[[Tensor], Tensor]


def compiled(model: nn.Module) -> Run:
    return torch.compile(model, backend=sparseconv)  # its name is tried in tests/packaging


def isa_without_blocks() -> str:
    """The best kernels that this CPU has, except those of blocks."""
    return str(extension.isas()[-2:][0])


def sine(y: Tensor) -> Tensor:
    return y.sin().sum()


def converted(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1:
            layer = sc.SparseConv1d.from_dense(module, torch.rand_like(module.weight) < 0.1)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, layer)
    return model


def linear(y: Tensor) -> Tensor:
    """A loss whose gradient does not depend on the rounding of its input."""
    weights = torch.arange(1.0, y.numel() + 1).cos().to(y.dtype)
    return (y.flatten() * weights).sum()


def step(
    model: nn.Module,
    run: Run,
    x: Tensor,
    loss: Callable[[Tensor], Tensor] = sine,
) -> list[Tensor]:
    """The output, all gradients, and the buffers afterwards."""
    x = x.clone().requires_grad_()
    y = run(x)
    grads = torch.autograd.grad(loss(y), [x, *model.parameters()], allow_unused=True)
    buffers = [b.clone() for b in model.buffers()]
    return [y.detach(), *(g for g in grads if g is not None), *buffers]


def check(
    model: nn.Module, x: Tensor, operations: int = 20, run: Run | None = None
) -> CompiledReport:
    """Compare a step with that of the model in float64; return what was compiled."""
    run = run or compiled(model)
    wide, single = copy.deepcopy(model).double(), copy.deepcopy(model).float()
    exact = step(wide, wide, x.double())
    rounded = step(single, single, x.float())
    found = step(model, run, x)
    assert len(exact) == len(found)
    floats = [t for t in exact if t.is_floating_point() and t.numel()]
    # In each operation, a result is a sum of at most N * L terms. Norms of nearly equal samples
    # magnify errors: by how much, the error of the model itself in float32 tells.
    terms = torch.tensor(x.shape[0] * x.shape[2] * operations)
    bound = error_bound(x, max(t.abs().max() for t in floats), terms, x.dtype)
    errors = [(a - b).abs().max() for a, b in zip(exact, rounded, strict=True) if a.numel()]
    bound = bound + 4 * max(errors) * torch.finfo(x.dtype).eps / torch.finfo(torch.float32).eps
    for i, (a, b) in enumerate(zip(exact, found, strict=True)):
        assert a.shape == b.shape, i
        assert not a.numel() or (a - b).abs().max() <= bound, f"result {i}"
    return compiled_report(model)


def check_rounded(model: nn.Module, x: Tensor, run: Run | None = None) -> CompiledReport:
    """Compare a step in bfloat16 with float64: it is as near as torch's, within a factor of two."""
    run = run or compiled(model)
    wide, plain = copy.deepcopy(model).double(), copy.deepcopy(model)
    results = [
        step(m, r, x, linear)
        for m, r in ((wide, lambda y: wide(y.double())), (plain, plain), (model, run))
    ]
    exact, rounded, found = ([t.double() for t in r if t.is_floating_point()] for r in results)
    assert [t.shape for t in exact] == [t.shape for t in found]
    assert [t.dtype for t in results[1]] == [t.dtype for t in results[2]]
    size, other, own = (
        torch.stack([(a - b).norm() for a, b in zip(exact, r, strict=True)]).norm()
        for r in ([torch.zeros_like(t) for t in exact], rounded, found)
    )
    assert own <= 2 * other + torch.finfo(torch.bfloat16).eps * size
    return compiled_report(model)


def sparse(inputs: int, outputs: int, taps: int, **options: object) -> sc.SparseConv1d:
    options = {"padding": "same", "density": 0.3} | options
    return sc.SparseConv1d(inputs, outputs, taps, **options)
