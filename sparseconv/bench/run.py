"""Check a case against float64, then time it beside its rivals: rows come of checked cases only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sparseconv import KernelCSR, SparseConv1d
from sparseconv.bench import rivals
from sparseconv.bench.cases import Case, Problem
from sparseconv.core.geometry import Geometry
from sparseconv.measure import peaks, timing
from sparseconv.ops import calls
from sparseconv.ops.backends import resolve_backend
from sparseconv.reference import conv1d_dense
from sparseconv.testing import error_bound

COMPUTATIONS = ("fprop", "dgrad", "wgrad")
# Seconds of calls in a row before the next candidate's turn, or each would measure the caches that
# the one before has emptied.
TURN = 0.01
_PEAK = "fma peak"  # a candidate among the others, never a rival


class WrongResultError(AssertionError):
    """A kernel left its computed error bound, so its speed means nothing."""


class Kernels(Protocol):
    """The three computations, as ``sparseconv.ops.calls`` has them."""

    def fprop(
        self, x: Tensor, values: Tensor, bias: Tensor | None, pattern: KernelCSR,
        geometry: Geometry, /,
    ) -> Tensor: ...  # fmt: skip

    def dgrad(
        self, grad: Tensor, values: Tensor, pattern: KernelCSR, geometry: Geometry,
        input_length: int, /,
    ) -> Tensor: ...  # fmt: skip

    def wgrad(
        self, grad: Tensor, x: Tensor, pattern: KernelCSR, geometry: Geometry, /
    ) -> Tensor: ...


class Expected(NamedTuple):
    """A result in float64, and how far from it a sum in any order may lie."""

    exact: Tensor
    bound: Tensor
    terms: float  # the most that any of its sums has


def cpp_or_reason() -> str:
    """Why the C++ kernels cannot run here; empty if they can."""
    try:
        resolve_backend("cpp", torch.device("cpu"))
    except RuntimeError as error:
        return f"there is nothing to measure: {error}"
    return ""


def sparse_calls(kernels: Kernels, problem: Problem) -> dict[str, Callable[[], Tensor]]:
    x, values, grad, pattern, geometry = problem
    return {
        "fprop": lambda: kernels.fprop(x, values, None, pattern, geometry),
        "dgrad": lambda: kernels.dgrad(grad, values, pattern, geometry, x.shape[2]),
        "wgrad": lambda: kernels.wgrad(grad, x, pattern, geometry),
    }


def expected(problem: Problem) -> dict[str, Expected]:
    """The three results in float64, with the bound computed for each output."""
    data = problem[:3]
    exact = _double(problem, *data)
    # On magnitudes it adds up what can be rounded, on ones it counts the terms.
    magnitude = _double(problem, *(t.abs() for t in data))
    terms = _double(problem, *(torch.ones_like(t) for t in data))
    dtype = problem.x.dtype
    return {
        name: Expected(
            exact[name],
            error_bound(exact[name], magnitude[name], terms[name], dtype),
            float(terms[name].max()) if terms[name].numel() else 0.0,
        )
        for name in COMPUTATIONS
    }


def check(kernels: Kernels, problem: Problem) -> dict[str, Expected]:
    """Compare all three computations with float64; return what they were compared with.

    Within the computed bound on the problem's own data, and exactly on integers: a gradient of the
    weights sums so many terms that a missing one hides inside any bound.

    Raises:
        WrongResultError: some output is outside its bound, or some sum of integers is not exact.
    """
    results = {name: call() for name, call in sparse_calls(kernels, problem).items()}
    wanted = check_bounds(results, problem)
    twin = _integer_twin(problem)
    exact = _double(twin, *twin[:3])
    for name, call in sparse_calls(kernels, twin).items():
        if wanted[name].terms * 8 * 8 < 2**24:  # so every partial sum is an exact float32
            wrong = int((call() != exact[name].to(twin.x.dtype)).sum())
            if wrong:
                raise WrongResultError(
                    f"{name} is wrong: {wrong} of {exact[name].numel()} sums of integers"
                )
    return wanted


def check_bounds(results: Mapping[str, Tensor], problem: Problem) -> dict[str, Expected]:
    """Compare what some kernels computed with float64; return what it was compared with.

    Raises:
        WrongResultError: some output is outside its bound.
    """
    wanted = expected(problem)
    for name, result in results.items():
        times = _times_its_bound(result, wanted[name].exact, wanted[name].bound)
        if not times <= 1:
            raise WrongResultError(f"{name} is wrong: {times:.3g} times its error bound")
    return wanted


def _integer_twin(problem: Problem) -> Problem:
    """The same convolution of integers from -8 to 8 without 0."""
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor) -> Tensor:
        magnitude = torch.randint(1, 9, like.shape, generator=generator)
        sign = torch.randint(0, 2, like.shape, generator=generator) * 2 - 1
        return (magnitude * sign).to(like.dtype)

    x, values, grad = (draw(t) for t in problem[:3])
    return problem._replace(x=x, values=values, grad=grad)


def check_rival(
    name: str, problem: Problem, wanted: Mapping[str, Expected]
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """Try a rival on a problem.

    Returns:
        The calls that gave the right result, and for the others the reason against them.
    """
    try:
        calls = rivals.RIVALS[name](problem)
        slack = rivals.fft_bound(problem) if name == "fft" else {}
    except (RuntimeError, NotImplementedError) as error:
        return {}, dict.fromkeys(COMPUTATIONS, _first_line(error))
    right, absent = {}, {}
    for computation, call in calls.items():
        exact, bound, _ = wanted[computation]
        try:
            got = call()
        except (RuntimeError, NotImplementedError) as error:
            absent[computation] = _first_line(error)
            continue
        if computation == "wgrad" and got.dim() == 3:
            got = got[problem.pattern.to_mask()]
        if computation in slack:
            bound = slack[computation]
            bound = bound[problem.pattern.to_mask()] if computation == "wgrad" else bound
        times = _times_its_bound(got, exact, bound)
        if times <= 1:
            right[computation] = call
        else:
            absent[computation] = f"wrong: {times:.3g} times the error bound"
    return right, absent


def measure(
    case: Case,
    kernels: Kernels = calls,
    *,
    rival_names: Sequence[str] = tuple(rivals.RIVALS),
    rounds: int = 30,
    machine_peaks: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Check a case, then time its computations; one row each.

    Torch's present number of threads is used. A rival that cannot run a computation, or whose
    result is wrong, is left out of its row, which says why under ``"absent"``.

    Args:
        case: what to compute; its ``isa`` is forced meanwhile.
        kernels: what is measured.
        rival_names: of ``rivals.RIVALS``.
        rounds: pairs of neighbours.
        machine_peaks: from ``peaks.measure``; without the fitting one, shares are None.

    Raises:
        WrongResultError: a result is wrong; nothing was timed.
        ValueError: the case's instruction set cannot run here.
    """
    with peaks.forced_isa(case.isa or None) as isa:
        problem = case.build()
        wanted = check(kernels, problem)
        candidates: dict[str, dict[str, Callable[[], object]]] = {
            name: {"sparse": call} for name, call in sparse_calls(kernels, problem).items()
        }
        absent: dict[str, dict[str, str]] = {name: {} for name in COMPUTATIONS}
        for rival in () if case.module else rival_names:
            right, reasons = check_rival(rival, problem, wanted)
            for name, call in right.items():
                candidates[name][rival] = call
            for name, reason in reasons.items():
                absent[name][rival] = reason
        roof = None
        if case.module:  # its time is Python's, and has no roof
            modules = _module_calls(problem, wanted["fprop"])
            kept = [name for name in modules if name in ("sparse", *rival_names)]
            candidates = {"fprop": {name: modules[name] for name in kept}}
        elif peak := peaks.find(machine_peaks, torch.get_num_threads(), isa, case.dtype):
            beside = peaks.loop(peak)
            roof = beside.flops, peak["stream_gbs"]
            for calls in candidates.values():
                calls[_PEAK] = beside.call
        return [
            _row(
                case,
                problem,
                name,
                isa,
                timing.interleave(calls, rounds=rounds, least_seconds=TURN),
                roof,
            )
            | {"absent": absent[name]}
            for name, calls in candidates.items()
        ]


def _module_calls(problem: Problem, wanted: Expected) -> dict[str, Callable[[], Tensor]]:
    """Forward passes of the modules, recording gradients, as a training loop calls them.

    Raises:
        WrongResultError: the sparse module's output is outside its bound.
    """
    x, values, _, pattern, geometry = problem
    out_channels, group_channels, taps = pattern.shape
    if geometry.padding[0] != geometry.padding[1] or geometry.padding_mode != "zeros":
        raise ValueError(f"expected padding as nn.Conv1d has it, but the case asks for {geometry}")
    sizes = (group_channels * geometry.groups, out_channels, taps, geometry.stride)
    options = (geometry.padding[0], geometry.dilation, geometry.groups, False)
    layer = SparseConv1d(*sizes, *options, pattern=pattern)
    dense = nn.Conv1d(*sizes, *options)
    with torch.no_grad():
        layer.values.copy_(values)
        dense.weight.copy_(layer.dense_weight())
    for name, module in (("fprop of SparseConv1d", layer), ("fprop of nn.Conv1d", dense)):
        times = _times_its_bound(module(x), wanted.exact, wanted.bound)
        if not times <= 1:
            raise WrongResultError(f"{name} is wrong: {times:.3g} times its error bound")
    return {"sparse": lambda: layer(x), "conv1d": lambda: dense(x)}


def _row(
    case: Case,
    problem: Problem,
    computation: str,
    isa: str,
    times: timing.Times,
    roof: tuple[float, float] | None,
) -> dict[str, Any]:
    """One row; ``roof``: the FLOPs of the peak's loop, and the stream in GB/s."""
    loop_seconds = times.pop(_PEAK, None)
    pattern, outputs = problem.pattern, case.n * case.output_length
    sparse = times["sparse"]
    third = max(1, len(sparse) // 3)
    flops, moved = 2 * pattern.nnz * outputs, compulsory_bytes(problem)
    ms = {name: timing.median_with_ci(samples).median * 1e3 for name, samples in times.items()}
    gflops = 1e-6 * flops / ms["sparse"]
    share_of_peak = share_of_roof = None
    if roof is not None and loop_seconds is not None:
        loop_flops, stream = roof
        reached, peak = 1e-9 * flops / sparse, 1e-9 * loop_flops / loop_seconds
        share_of_peak = timing.median_with_ci(reached / peak).median
        share_of_roof = timing.median_with_ci(
            reached / np.minimum(peak, stream * flops / moved)
        ).median
    return {
        "case": case.name,
        "suite": case.suite,
        "computation": computation,
        "dtype": case.dtype,
        "threads": torch.get_num_threads(),
        "isa": isa,
        "batch": case.n,
        "in_channels": case.in_channels,
        "out_channels": case.out_channels,
        "kernel_size": case.kernel_size,
        "length": case.length,
        "output_length": case.output_length,
        "stride": case.stride,
        "dilation": case.dilation,
        "groups": case.groups,
        "nnz": pattern.nnz,
        "density": pattern.density,
        "flops": flops,
        "dense_flops": 2 * pattern.numel * outputs,
        "bytes": moved,
        "rounds": len(sparse),
        "ms": ms,
        "ratio": {
            name: list(timing.ratio(times, name, "sparse")) for name in times if name != "sparse"
        },
        "gflops": gflops,
        "share_of_peak": share_of_peak,
        "share_of_roof": share_of_roof,
        "drift": float(np.median(sparse[-third:]) / np.median(sparse[:third])),
        "checked": "float64 bound",
    }


def compulsory_bytes(problem: Problem) -> int:
    """Bytes that any computation must move: two series, values, rows and pointers, once each."""
    x, values, grad, pattern, _ = problem
    data = sum(t.numel() * t.element_size() for t in (x, values, grad))
    return data + 4 * (pattern.nnz + pattern.shape[0] * pattern.shape[1] + 1)


def _times_its_bound(got: Tensor, exact: Tensor, bound: Tensor) -> float:
    """How many times its bound the worst error is; NaN for NaN, infinite for another shape."""
    if got.shape != exact.shape:
        return float("inf")
    if not exact.numel():
        return 0.0
    error = (got.detach().double() - exact).abs()
    return float((error / bound.clamp_min(torch.finfo(torch.float64).tiny)).max())


def _double(problem: Problem, x: Tensor, values: Tensor, grad: Tensor) -> dict[str, Tensor]:
    # Detached first: the float64 copy of a float64 tensor is that tensor itself.
    x, values = (t.detach().double().requires_grad_() for t in (x, values))
    y = conv1d_dense(x, values, problem.pattern, None, *problem.geometry[1:])
    dgrad, wgrad = torch.autograd.grad(y, (x, values), grad.double())
    return {"fprop": y.detach(), "dgrad": dgrad, "wgrad": wgrad}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
