"""DSN's later layer on 16 series: the sparse kernels beside dense at every precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.target import PRECISIONS, Candidate, Row, Target, tf32
from sparseconv import KernelCSR
from sparseconv.bench import baselines
from sparseconv.bench.cases import Problem
from sparseconv.bench.run import sparse_calls
from sparseconv.core.geometry import Geometry
from sparseconv.reference import conv1d_dense

Make = Callable[[Problem], baselines.Calls]


class Form(NamedTuple):
    """One way to compute the layer; what makes its calls may fail."""

    name: str
    make: Callable[[], baselines.Calls]
    tf32: bool = False


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


def padded(make: Make, problem: Problem) -> baselines.Calls:
    """With channels of 16s, the further ones zero."""
    x, _, grad, pattern, geometry = problem
    rows, columns, _ = pattern.shape
    more = -rows % 16, -columns % 16
    mask = F.pad(pattern.to_mask(), (0, 0, 0, more[1], 0, more[0]))
    larger = KernelCSR.from_mask(mask)
    wide = F.pad(x, (0, 0, 0, more[1])), problem.values, F.pad(grad, (0, 0, 0, more[0]))
    calls = make(Problem(*wide, larger, Geometry(larger.shape, *geometry[1:])))
    return {
        "fprop": lambda: calls["fprop"]()[:, :rows],
        "dgrad": lambda: calls["dgrad"]()[:, :columns],
        "wgrad": lambda: calls["wgrad"]()[:rows, :columns],
    }


def sliced(make: Make, problem: Problem) -> baselines.Calls:
    """A dense convolution for each of DSN's three kernel groups, as long as its longest kernel."""
    x, values, grad, pattern, geometry = problem
    mask, bounds, taps = pattern.to_mask(), [0], pattern.shape[2]
    parts = []
    for rows in torch.arange(len(mask)).chunk(3):
        part = mask[rows]
        reach = int(part.any(1).any(0).nonzero().max()) + 1
        its = KernelCSR.from_mask(part[..., :reach].contiguous())
        bounds.append(bounds[-1] + its.nnz)
        # As long as the padding makes it, which every call would have to cut otherwise.
        g = F.pad(grad[:, rows[0] : rows[-1] + 1], (0, taps - reach))
        own = Problem(
            x, values[bounds[-2] : bounds[-1]], g, its, Geometry(its.shape, *geometry[1:])
        )
        parts.append((make(own), taps - reach))
    length = grad.shape[2]
    return {
        "fprop": lambda: torch.cat([calls["fprop"]()[..., :length] for calls, _ in parts], 1),
        "dgrad": lambda: torch.stack([calls["dgrad"]() for calls, _ in parts]).sum(0),
        "wgrad": lambda: torch.cat([F.pad(calls["wgrad"](), (0, n)) for calls, n in parts]),
    }


RIVALS: dict[str, Make] = {
    "dense": baselines.conv1d,
    "dense padded": partial(padded, baselines.conv1d),
    "dense slices": partial(sliced, baselines.conv1d),
    "channels last": baselines.conv2d_channels_last,
    "channels last padded": partial(padded, baselines.conv2d_channels_last),
}


def forms(target: Target, problem: Problem, kinds: str) -> Iterator[Form]:
    """Sparse kernels in two types; dense at each precision, and by FFT."""
    if "sparse" in kinds:
        for backend in target.backends:
            for precision in ("fp32", "bf16"):
                its = on(target.device, problem, PRECISIONS[precision][0])
                make = partial(sparse_calls, target.ops(backend), its)
                yield Form(f"{backend} {precision}", make)
    if "dense" in kinds:
        for precision, (dtype, allowed) in PRECISIONS.items():
            its = on(target.device, problem, dtype)
            for name, rival in RIVALS.items():
                yield Form(f"{name} {precision}", partial(rival, its), allowed)
        yield Form("FFT fp32", partial(baselines.fft, on(target.device, problem)))


def row(target: Target, length: int, computation: str, rounds: int, kinds: str) -> Row:
    """Time one computation in every form; what cannot run says why.

    The error beside each time is that against float64; a sparse float32 one is a wrong kernel's
    where it is far above 1e-6.
    """
    problem = on(target.device, target.layer(length).build())
    wanted = exact(problem)[computation]
    positions = problem.pattern.positions().to(target.device)
    candidates: dict[str, Candidate] = {}
    errors, absent = {}, dict(target.missing) if "sparse" in kinds else {}
    for form in forms(target, problem, kinds):
        try:
            with tf32(form.tf32):
                call = form.make()[computation]
                result = call()
                if computation == "wgrad" and result.dim() == 3:  # dense: of the active weights
                    result = result.flatten()[positions]
                error = relative(result, wanted)
                timed = {f"{form.name} eager": Candidate(call, form.tf32)}
                if target.graphs:
                    times = target.sizes.replays
                    replay, _ = target.capture(call, times)
                    timed[f"{form.name} graph"] = Candidate(replay, form.tf32, times)
        except Exception as reason:
            absent[form.name] = f"{type(reason).__name__}: {reason}"
            continue
        errors |= dict.fromkeys(timed, error)
        candidates |= timed
    before = target.state()
    return {
        "computation": computation, "length": length, "batch": len(problem.x),
        "flop": 2 * len(problem.values) * len(problem.x) * problem.grad.shape[2],
        "samples_ms": target.milliseconds(candidates, rounds=rounds),
        "error": errors, "absent": absent, "clocks": [before, target.state()],
    }  # fmt: skip
