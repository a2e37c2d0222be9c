"""A DSN's later layer on 16 series, sparse and dense, at every precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product, starmap

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench import baselines
from benchmarks.bench.cases import Problem
from benchmarks.bench.run import COMPUTATIONS, exact_results, kernel_calls
from benchmarks.gpu.target import PRECISIONS, Call, Row, Target, Timed, tf32
from sparseconv import KernelCSR
from sparseconv.core.geometry import Geometry

Rival = Callable[[Problem], baselines.Calls]


def on(device: torch.device, problem: Problem, dtype: torch.dtype | None = None) -> Problem:
    x, values, grad = (tensor.to(device, dtype) for tensor in problem[:3])
    return problem._replace(x=x, values=values, grad=grad)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return ``‖found - wanted‖ / ‖wanted‖``; NaN for NaN."""
    return float((found.double() - wanted).norm() / wanted.norm())


def part_of(problem: Problem, mask: Tensor, x: Tensor, values: Tensor, grad: Tensor) -> Problem:
    pattern = KernelCSR.from_mask(mask.contiguous())
    geometry = Geometry(*pattern.shape, *problem.geometry[3:])
    return Problem(x, values, grad, pattern, geometry)


def padded(rival: Rival, problem: Problem) -> baselines.Calls:
    """Pad the channels with zeros to a multiple of 16."""
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
    """Convolve each of DSN's three kernel groups densely, with the taps of its longest kernel."""
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


CHANNELS_LAST = partial(baselines.dense, channels_last=True)
RIVALS: dict[str, Rival] = {
    "dense": baselines.dense,
    "dense padded": partial(padded, baselines.dense),
    "dense slices": partial(sliced, baselines.dense),
    "channels last": CHANNELS_LAST,
    "channels last padded": partial(padded, CHANNELS_LAST),
}


def row(target: Target, blocks: bool, length: int, computation: str) -> Row:
    """Time one computation in every form: sparse, dense, with FFT; also as graphs.

    A sparse kernel whose float32 error is far above 1e-6 is wrong. Blocks, which only Triton's
    kernels multiply, may use TF32 with errors of 1e-3.
    """
    problem = target.layer(length, blocks).build()
    wanted = exact_results(problem)[computation].exact  # on the CPU, whatever the GPU does
    positions = problem.pattern.positions()
    typed = {name: on(target.device, problem, dtype) for name, (dtype, _) in PRECISIONS.items()}

    def made(make: Callable[[], baselines.Calls], allowed: bool, graph: bool) -> Timed:
        with tf32(allowed):
            call = make()[computation]
            result = call().cpu()
            if computation == "wgrad" and result.dim() == 3:  # dense: of the active weights
                result = result.flatten()[positions]
            timed = Timed(call, allowed, error=relative(result, wanted))
            return target.graphed(timed) if graph else timed

    forms: dict[str, tuple[Callable[[], baselines.Calls], bool]] = {
        f"{backend} {precision}":
            (partial(kernel_calls, backend, typed[precision]), PRECISIONS[precision][1])
        for backend in target.sparse(blocks)
        for precision in ("TF32" if blocks else "fp32", "bf16")
    }  # fmt: skip
    for precision, (_, allowed) in PRECISIONS.items():
        for name, rival in RIVALS.items():
            forms[f"{name} {precision}"] = partial(rival, typed[precision]), allowed
    forms["FFT fp32"] = partial(baselines.fft, typed["fp32"]), False
    makes = {
        f"{name} {mode}": partial(made, make, allowed, mode == "graph")
        for name, (make, allowed) in forms.items()
        for mode in ("eager", "graph")[: 1 + target.graphs]
    }
    return target.row(computation, length, makes)


def rows(target: Target, lengths: Sequence[int], blocks: bool = False) -> Iterator[Row]:
    return starmap(partial(row, target, blocks), product(lengths, COMPUTATIONS))


def density_rows(target: Target, lengths: Sequence[int]) -> Iterator[Row]:
    """Time each backend with few weights per kernel; these rows determine what "auto" chooses."""
    sizes = target.sizes
    for length, shape, per_kernel in product(lengths, sizes.shapes, sizes.per_kernel):
        rows, columns, taps = shape
        case = replace(target.layer(length), out_channels=rows, in_channels=columns,
                       kernel_size=taps, pattern="random", density=per_kernel / taps)  # fmt: skip
        problem = on(target.device, case.build())
        for computation in COMPUTATIONS:

            def made(backend: str, computation: str = computation) -> Timed:
                timed = Timed(kernel_calls(backend, problem)[computation])  # noqa: B023 (called here)
                return target.graphed(timed) if target.graphs else timed

            makes = {backend: partial(made, backend) for backend in target.backends}
            name = f"{computation}, {shape}, {per_kernel:g} a kernel"
            yield target.row(name, length, makes)


def all_calls(target: Target, length: int) -> list[Call]:
    problem = on(target.device, target.layer(length).build())
    return [call for name in target.backends for call in kernel_calls(name, problem).values()]
