"""Check a case against float64, then time it against its baselines.

Every check raises ``WrongResultError`` if the error of an output exceeds its bound.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench import peaks
from benchmarks.bench.baselines import BASELINES, Calls
from benchmarks.bench.cases import Case, Problem
from sparseconv.functional import sparse_conv1d
from sparseconv.measure import timing
from sparseconv.measure.machine import threads
from sparseconv.ops.backends import extension
from sparseconv.ops.schemas import KERNELS
from sparseconv.reference import conv1d_dense
from sparseconv.testing import Expected, error_bound

COMPUTATIONS = ("fprop", "dgrad", "wgrad")
ROUNDS = 12
# Seconds of calls in a row before the next candidate's turn, or each would measure the caches that
# the one before has emptied.
TURN = 0.01
# Of a case, in its rows.
FACTS = ("suite", "dtype", "in_channels", "out_channels", "kernel_size", "length", "output_length",
         "stride", "dilation", "groups")  # fmt: skip
# Calls by computation, and the reasons why others are absent.
Checked = tuple[dict[str, Callable[[], Any]], dict[str, str]]


class WrongResultError(AssertionError):
    """A kernel's error exceeded the computed bound, so its speed means nothing."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's type if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def public_calls(problem: Problem) -> Calls:
    """Return calls to ``sparse_conv1d``, and to autograd for one gradient at a time."""
    x, values, grad, pattern, geometry = problem

    def convolve(x: Tensor, values: Tensor) -> Tensor:
        how: Any = geometry.stride, geometry.padding, geometry.dilation, geometry.groups
        mode = geometry.padding_mode
        return sparse_conv1d(x, values, pattern, None, *how, padding_mode=mode, backend="cpp")

    def gradient(y: Tensor, leaf: Tensor) -> Tensor:
        return torch.autograd.grad(y, leaf, grad, retain_graph=True)[0]

    x_leaf, values_leaf = (t.detach().requires_grad_() for t in (x, values))
    return {
        "fprop": lambda: convolve(x, values),
        "dgrad": partial(gradient, convolve(x_leaf, values), x_leaf),
        "wgrad": partial(gradient, convolve(x, values_leaf), values_leaf),
    }


def kernel_calls(backend: str, problem: Problem) -> Calls:
    """Return calls to a backend's ops, without autograd."""
    x, values, grad, pattern, geometry = problem
    fprop, dgrad, wgrad = KERNELS[backend]
    plan = (*pattern.on(x.device), geometry)
    return {
        "fprop": lambda: fprop(x, values, None, *plan),
        "dgrad": lambda: dgrad(grad, values, *plan, x.shape[2]),
        "wgrad": lambda: wgrad(grad, x, *plan),
    }


def exact_results(problem: Problem) -> dict[str, Expected]:
    """Compute the three results in float64, with an error bound for each output."""
    data = problem[:3]
    exact = _double(problem, *data)
    # On magnitudes it adds up what can be rounded, on ones it counts the terms.
    magnitude = _double(problem, *(t.abs() for t in data))
    terms = _double(problem, *(torch.ones_like(t) for t in data))
    return {
        name: Expected(found, error_bound(found, magnitude[name], terms[name], problem.x.dtype))
        for name, found in exact.items()
    }


def _double(problem: Problem, x: Tensor, values: Tensor, grad: Tensor) -> dict[str, Tensor]:
    # Detached first: the float64 copy of a float64 tensor is that tensor itself.
    x, values = (t.detach().double().requires_grad_() for t in (x, values))
    y = conv1d_dense(x, values, problem.pattern, None, problem.geometry)
    dgrad, wgrad = torch.autograd.grad(y, (x, values), grad.double())
    return {"fprop": y.detach(), "dgrad": dgrad, "wgrad": wgrad}


def check(
    problem: Problem, make_calls: Callable[[Problem], Calls] | None = None
) -> dict[str, Expected]:
    """Compare all three computations with float64; return the expected results.

    Results must be within the computed bound on the problem's data, and exact on integers. Integers
    reveal a missing term of a weight's gradient, which a bound may hide. ``make_calls`` replaces
    ``public_calls``.
    """
    make_calls = make_calls or public_calls
    wanted = exact_results(problem)
    check_bounds({name: call() for name, call in make_calls(problem).items()}, wanted)
    twin, exact = _integers(problem)
    largest = _double(twin, *(t.abs() for t in twin[:3]))
    for name, call in make_calls(twin).items():
        sums = exact[name].to(twin.x.dtype)
        # Below 2**24 every partial sum is an exact float32.
        if (largest[name] < 2**24).all() and (wrong := int((call() != sums).sum())):
            raise WrongResultError(f"{name} is wrong: {wrong} of {sums.numel()} sums of integers")
    return wanted


def check_bounds(results: Mapping[str, Tensor], wanted: Mapping[str, Expected]) -> None:
    for name, result in results.items():
        times = _times_its_bound(result, wanted[name])
        if not times <= 1:
            raise WrongResultError(f"{name} is wrong: its error is {times:.3g} times the bound")


def _times_its_bound(got: Tensor, wanted: Expected) -> float:
    """Return the worst ratio of error to bound; NaN for NaN, infinity for a wrong shape."""
    if got.shape != wanted.exact.shape:
        return float("inf")
    if not got.numel():
        return 0.0
    error = (got.detach().double() - wanted.exact).abs()
    return float((error / wanted.bound.clamp_min(torch.finfo(torch.float64).tiny)).max())


@functools.lru_cache(maxsize=1)  # asked for by the kernels and by two baselines
def _integers(problem: Problem) -> tuple[Problem, dict[str, Tensor]]:
    """Draw nonzero integers from -8 to 8 as the tensors; compute the exact results."""
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor) -> Tensor:
        magnitude = torch.randint(1, 9, like.shape, generator=generator)
        sign = torch.randint(0, 2, like.shape, generator=generator) * 2 - 1
        return (magnitude * sign).to(like.dtype)

    x, values, grad = (draw(t) for t in problem[:3])
    return problem._replace(x=x, values=values, grad=grad), _double(problem, x, values, grad)


def checked_baseline(name: str, problem: Problem, wanted: Mapping[str, Expected]) -> Checked:
    """Return a baseline's correct calls, and the reasons why the others are left out.

    An FFT's error is relative to the norm of the series, so no bound on single outputs holds. The
    FFT is checked on integers, where rounded outputs must be exact.
    """
    try:
        calls = tried = BASELINES[name](problem)
        if name.startswith("fft"):
            twin, sums = _integers(problem)
            tried = BASELINES[name](twin)
            wanted = {key: Expected(exact, torch.tensor(0.5)) for key, exact in sums.items()}
    except RuntimeError as error:
        return {}, dict.fromkeys(COMPUTATIONS, first_line(error))
    right, absent = {}, {}
    for computation, call in tried.items():
        try:
            got = call()
        except RuntimeError as error:
            absent[computation] = first_line(error)
            continue
        if computation == "wgrad" and got.dim() == 3:
            got = got[problem.pattern.to_mask()]
        times = _times_its_bound(got, wanted[computation])
        if times <= 1:
            right[computation] = calls[computation]
        else:
            absent[computation] = f"wrong: {times:.3g} times the error bound"
    return right, absent


def measure(
    count: int, case: Case, *, baselines: Sequence[str] = tuple(BASELINES), rounds: int = ROUNDS
) -> list[dict[str, Any]]:
    """Check a case, then time its computations on ``count`` threads; return one row for each.

    A row omits baselines that fail or are wrong, and states the reasons under ``"absent"``.
    ``"share_of_peak"`` is None in half precision.
    """
    assert extension is not None
    with threads(count):
        problem = case.build()
        wanted = check(problem)
        ways = {name: checked_baseline(name, problem, wanted) for name in baselines}
        ways = {"sparse": (public_calls(problem), {}), **ways}
        loop = peaks.loop(case.dtype) if case.dtype in peaks.DTYPES else None
        work = 2 * case.n * case.output_length
        flops = work * problem.pattern.nnz
        rows = []
        for name in COMPUTATIONS:
            timed = {way: right[name] for way, (right, _) in ways.items() if name in right}
            if loop:
                timed[peaks.PEAK] = loop.call
            times = timing.interleave(timed, rounds=rounds, least_seconds=TURN)
            share = loop.share(times, flops) if loop else None
            rows.append(
                {"case": case.name, "computation": name, "isa": extension.isa(), "rounds": rounds}
                | {fact: getattr(case, fact) for fact in FACTS}
                | {
                    "batch": case.n,
                    "threads": count,
                    "nnz": problem.pattern.nnz,
                    "density": problem.pattern.density,
                    "flops": flops,
                    "dense_flops": work * problem.pattern.numel,
                    **times_and_ratios(times),
                    "gflops": float(np.median(1e-9 * flops / times["sparse"])),
                    "share_of_peak": share,
                    "absent": {way: why[name] for way, (_, why) in ways.items() if name in why},
                }
            )
        return rows


def times_and_ratios(times: timing.Times) -> dict[str, Any]:
    """Return all calls' milliseconds, and the paired ratios of their times to the sparse time."""
    return {
        "ms": {name: 1e3 * float(np.median(samples)) for name, samples in times.items()},
        "ratio": {
            name: list(timing.ratio(times, name, "sparse")) for name in times if name != "sparse"
        },
    }
