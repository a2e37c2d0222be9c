"""DSN's later layer on 16 series: the sparse kernels beside dense at every precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.target import PRECISIONS, Call, Candidate, Row, Target, tf32
from sparseconv import KernelCSR
from sparseconv.bench import baselines
from sparseconv.bench.cases import Problem
from sparseconv.bench.run import exact_results
from sparseconv.core.geometry import Geometry
from sparseconv.ops.calls import KERNELS

Rival = Callable[[Problem], baselines.Calls]


class Form(NamedTuple):
    """One way to compute the layer; what makes its calls may fail."""

    name: str
    make: Callable[[], baselines.Calls]
    tf32: bool = False


def on(device: torch.device, problem: Problem, dtype: torch.dtype | None = None) -> Problem:
    x, values, grad = (tensor.to(device, dtype) for tensor in problem[:3])
    return problem._replace(x=x, values=values, grad=grad)


def sparse_calls(backend: str, problem: Problem) -> baselines.Calls:
    """The three computations by a backend's ops."""
    x, values, grad, pattern, geometry = problem
    fprop, dgrad, wgrad = KERNELS[backend]
    plan = (*pattern.on(x.device), geometry.numbers)
    return {
        "fprop": lambda: fprop(x, values, None, *plan),
        "dgrad": lambda: dgrad(grad, values, *plan, x.shape[2]),
        "wgrad": lambda: wgrad(grad, x, *plan),
    }


def relative(found: Tensor, wanted: Tensor) -> float:
    """``‖found - wanted‖ / ‖wanted‖``; NaN for NaN."""
    return float((found.double() - wanted).norm() / wanted.norm())


def part_of(problem: Problem, mask: Tensor, x: Tensor, values: Tensor, grad: Tensor) -> Problem:
    pattern = KernelCSR.from_mask(mask.contiguous())
    geometry = Geometry(pattern.shape, *problem.geometry[1:])
    return Problem(x, values, grad, pattern, geometry)


def padded(rival: Rival, problem: Problem) -> baselines.Calls:
    """With channels of 16s, the further ones zero."""
    rows, columns, _ = problem.pattern.shape
    out, more = -rows % 16, -columns % 16
    mask = F.pad(problem.pattern.to_mask(), (0, 0, 0, more, 0, out))
    x, grad = F.pad(problem.x, (0, 0, 0, more)), F.pad(problem.grad, (0, 0, 0, out))
    calls = rival(part_of(problem, mask, x, problem.values, grad))
    return {
        "fprop": lambda: calls["fprop"]()[:, :rows],
        "dgrad": lambda: calls["dgrad"]()[:, :columns],
        "wgrad": lambda: calls["wgrad"]()[:rows, :columns],
    }


def sliced(rival: Rival, problem: Problem) -> baselines.Calls:
    """A dense convolution for each of DSN's three kernel groups, as long as its longest kernel."""
    x, values, grad, pattern, _ = problem
    parts, mask, begin, taps = [], pattern.to_mask(), 0, pattern.shape[2]
    for rows in torch.arange(len(mask)).chunk(3):
        reach = int(mask[rows].any(1).any(0).nonzero().max()) + 1
        kept, more = mask[rows][..., :reach], taps - reach
        end = begin + int(kept.sum())
        # As long as the padding makes it, which every call would have to cut otherwise.
        g = F.pad(grad[:, rows[0] : rows[-1] + 1], (0, more))
        parts.append((rival(part_of(problem, kept, x, values[begin:end], g)), more))
        begin = end
    length = grad.shape[2]
    return {
        "fprop": lambda: torch.cat([calls["fprop"]()[..., :length] for calls, _ in parts], 1),
        "dgrad": lambda: torch.stack([calls["dgrad"]() for calls, _ in parts]).sum(0),
        "wgrad": lambda: torch.cat([F.pad(calls["wgrad"](), (0, n)) for calls, n in parts]),
    }


RIVALS: dict[str, Rival] = {
    "dense": baselines.conv1d,
    "dense padded": partial(padded, baselines.conv1d),
    "dense slices": partial(sliced, baselines.conv1d),
    "channels last": baselines.conv2d_channels_last,
    "channels last padded": partial(padded, baselines.conv2d_channels_last),
}


def forms(target: Target, problem: Problem) -> Iterator[Form]:
    """Sparse kernels in two types; dense at each precision, and by FFT."""
    typed = {name: on(target.device, problem, dtype) for name, (dtype, _) in PRECISIONS.items()}
    for backend in target.backends:
        for precision in ("fp32", "bf16"):
            make = partial(sparse_calls, backend, typed[precision])
            yield Form(f"{backend} {precision}", make)
    for precision, (_, allowed) in PRECISIONS.items():
        for name, rival in RIVALS.items():
            yield Form(f"{name} {precision}", partial(rival, typed[precision]), allowed)
    yield Form("FFT fp32", partial(baselines.fft, typed["fp32"]))


def all_computations(form: Form) -> Call:
    calls = form.make()

    def run() -> None:
        with tf32(form.tf32):
            for call in calls.values():
                call()

    return run


def row(target: Target, length: int, computation: str, rounds: int) -> Row:
    """Time one computation in every form, eager and as a graph.

    The error beside each time is that against float64; a sparse float32 one is a wrong kernel's
    where it is far above 1e-6.
    """
    problem = target.layer(length).build()
    wanted = exact_results(problem)[computation].exact  # on the CPU, whatever the GPU does
    positions = problem.pattern.positions()

    def made(form: Form) -> tuple[dict[str, Candidate], float]:
        with tf32(form.tf32):
            call = form.make()[computation]
            result = call().cpu()
            if computation == "wgrad" and result.dim() == 3:  # dense: of the active weights
                result = result.flatten()[positions]
            timed = {f"{form.name} eager": Candidate(call, form.tf32)}
            if target.graphs:
                times = target.sizes.replays
                replay, _ = target.capture(call, times)
                timed[f"{form.name} graph"] = Candidate(replay, form.tf32, times)
            return timed, relative(result, wanted)

    makes = {form.name: partial(made, form) for form in forms(target, problem)}
    flop = 2 * len(problem.values) * len(problem.x) * problem.grad.shape[2]
    return target.row(computation, length, makes, rounds, flop)
