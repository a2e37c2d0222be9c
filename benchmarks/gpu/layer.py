"""DSN's later layer on 16 series: the sparse kernels beside dense at every precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.target import PRECISIONS, Candidate, Row, Target, tf32
from sparseconv.bench.cases import Problem
from sparseconv.bench.run import sparse_calls
from sparseconv.reference import conv1d_dense, dense_weight

Calls = dict[str, Callable[[], Tensor]]


class Form(NamedTuple):
    """One way to compute the layer."""

    name: str
    calls: Calls
    tf32: bool = False
    compiled: bool = False


def on(device: torch.device, problem: Problem, dtype: torch.dtype | None = None) -> Problem:
    x, values, grad = (tensor.to(device, dtype) for tensor in problem[:3])
    return problem._replace(x=x, values=values, grad=grad)


def exact(problem: Problem) -> dict[str, Tensor]:
    """The three results in float64, by the dense path on the problem's device."""
    x, values = (t.double().requires_grad_() for t in problem[:2])
    y = conv1d_dense(x, values, problem.pattern, None, *problem.geometry[1:])
    dx, dw = torch.autograd.grad(y, (x, values), problem.grad.double())
    return {"fprop": y.detach(), "dgrad": dx, "wgrad": dw}


def relative(found: Tensor, wanted: Tensor) -> float:
    """``‖found - wanted‖ / ‖wanted‖``; NaN for NaN."""
    return float((found.double() - wanted).norm() / wanted.norm())


def dense_calls(problem: Problem, dtype: torch.dtype, more: tuple[int, int] = (0, 0)) -> Calls:
    """cuDNN's convolution, with so many more channels in and out that are zero."""
    (left, _), (out_channels, in_channels, _) = problem.geometry.padding, problem.geometry.shape
    x = F.pad(problem.x, (0, 0, 0, more[0])).to(dtype)
    grad = F.pad(problem.grad, (0, 0, 0, more[1])).to(dtype)
    weight = dense_weight(problem.values, problem.pattern)
    weight = F.pad(weight, (0, 0, 0, more[0], 0, more[1])).to(dtype)
    for tensor in (x, grad, weight):  # graphs of torch.compile shall not copy them first
        torch._dynamo.mark_static_address(tensor)

    def backward(*wanted: bool) -> Any:
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1], [left], [1], False, [0], 1, [*wanted, False]
        )

    return {
        "fprop": lambda: F.conv1d(x, weight, padding=left)[:, :out_channels],
        "dgrad": lambda: backward(True, False)[0][:, :in_channels],
        "wgrad": lambda: backward(False, True)[1][:out_channels, :in_channels],
    }


def compiled(call: Any) -> Callable[..., Any]:
    """What torch.compile makes of a call for its own shapes, with CUDA graphs."""
    return torch.compile(call, mode="reduce-overhead", dynamic=False)


def forms(target: Target, problem: Problem) -> Iterator[Form]:
    """Sparse kernels in two types; dense as it is, with channels of 16s, and compiled."""
    for backend in target.backends:
        for precision in ("fp32", "bf16"):
            its = on(target.device, problem, PRECISIONS[precision][0])
            yield Form(f"{backend} {precision}", sparse_calls(target.ops(backend), its))
    out_channels, in_channels, _ = problem.geometry.shape
    more = -in_channels % 16, -out_channels % 16
    for precision, (dtype, allowed) in PRECISIONS.items():
        calls = dense_calls(problem, dtype)
        yield Form(f"dense {precision}", calls, allowed)
        yield Form(f"dense padded {precision}", dense_calls(problem, dtype, more), allowed)
        if target.graphs:
            made = {name: compiled(call) for name, call in calls.items()}
            yield Form(f"dense {precision} compiled", made, allowed, compiled=True)


def row(target: Target, length: int, computation: str, rounds: int) -> Row:
    """Time one computation in every form; what cannot run says why.

    The error beside each time is that against float64; a sparse float32 one is a wrong kernel's
    where it is far above 1e-6.
    """
    torch.compiler.reset()  # which compiles only so many versions of one function
    problem = on(target.device, target.layer(length).build())
    wanted = exact(problem)[computation]
    positions = problem.pattern.positions().to(target.device)
    candidates: dict[str, Candidate] = {}
    errors, absent = {}, dict(target.missing)
    for form in forms(target, problem):
        call = form.calls[computation]
        try:
            with tf32(form.tf32):
                result = call()
                if computation == "wgrad" and result.dim() == 3:  # dense: of the active weights
                    result = result.flatten()[positions]
                error = relative(result, wanted)
                timed = {form.name if form.compiled else f"{form.name} eager": call}
                if target.graphs and not form.compiled:
                    timed[f"{form.name} graph"] = target.capture(call)[0]
        except Exception as reason:
            absent[form.name] = f"{type(reason).__name__}: {reason}"
            continue
        errors |= dict.fromkeys(timed, error)
        candidates |= {name: Candidate(one, form.tf32) for name, one in timed.items()}
    return {
        "computation": computation, "length": length, "batch": len(problem.x),
        "samples_ms": target.milliseconds(candidates, rounds=rounds),
        "error": errors, "absent": absent,
    }  # fmt: skip
