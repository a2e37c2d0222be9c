"""The kernels alone on tensors in their own order: what they reach inside of a chain."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sparseconv.bench import goals
from sparseconv.bench.cases import CASES, Case
from sparseconv.bench.run import COMPUTATIONS, WrongResultError, sparse_calls
from sparseconv.functional.chain import Chain, Conv
from sparseconv.measure import peaks
from sparseconv.measure.machine import threads
from sparseconv.ops import backends
from sparseconv.ops.calls import PlannedKernels

LENGTHS = tuple(goals.OWN_ORDER)


def measure(
    count: int,
    machine_peaks: Sequence[Mapping[str, Any]],
    *,
    lengths: Sequence[int] = LENGTHS,
    rounds: int = 30,
) -> list[dict[str, Any]]:
    """The share of the peak of DSN's layer in a chain, without the conversions at its ends.

    The layer is the one of the cases ``dsn_evolved_L*``. Each computation's time is what torch's
    profiler has of it; the loop of multiply-adds runs before each.

    Args:
        count: torch's threads.
        machine_peaks: of ``peaks.measure``.
        lengths: of the cases.
        rounds: pairs of neighbours.

    Raises:
        WrongResultError: a chain has other bits than the ops.
    """
    with threads(count):
        return [
            row
            for length in lengths
            for row in _rows(CASES[f"dsn_evolved_L{length}"], machine_peaks, rounds)
        ]


def _rows(
    case: Case, machine_peaks: Sequence[Mapping[str, Any]], rounds: int
) -> list[dict[str, Any]]:
    assert backends.extension is not None
    isa, count = str(backends.extension.isa()), torch.get_num_threads()
    peak = peaks.find(machine_peaks, count, isa, case.dtype)
    if peak is None:
        return []
    problem = case.build()
    x, values, grad, pattern, geometry = problem
    inputs = [tensor.detach().requires_grad_() for tensor in (x, values)]
    chain, stages = Chain(), [Conv(inputs[1], None, pattern, geometry)]

    def run() -> list[Any]:
        y = chain(inputs[0], stages)
        assert y is not None
        return [y.detach(), *torch.autograd.grad(y, inputs, grad)]

    for found, (name, call) in zip(
        run(), sparse_calls(PlannedKernels, problem).items(), strict=True
    ):
        if not torch.equal(found, call()):
            raise WrongResultError(f"{case.name}: {name} has other bits in a chain")
    loop, at_peak = peaks.loop(peak), []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(rounds):
            start = time.perf_counter()
            loop.call()
            at_peak.append(loop.flops / (time.perf_counter() - start))
            for _ in range(3):  # the last of three: the loop has emptied no cache, but cooled them
                run()
    flops = 2 * pattern.nnz * case.n * case.output_length
    rows = []
    for name in COMPUTATIONS:
        times = [
            1e-6 * event.cpu_time_total
            for event in profiler.events()
            if event.name == f"sparseconv::{name}"
        ][2::3]
        rows.append(
            {
                "case": case.name,
                "computation": name,
                "batch": case.n,
                "length": case.length,
                "threads": count,
                "isa": isa,
                "rounds": rounds,
                "ms": {"sparse": 1e3 * float(np.median(times))},
                "share_of_peak": float(np.median(flops / np.array(times) / np.array(at_peak))),
            }
        )
    return rows
