"""The whole network beside the same network dense: training, inference, latency, memory.

The baselines are the network as mask-based sparse training runs it (``masked_dense``), the fastest
that PyTorch's settings make of it (``dense_best``, the row names which), and ``torch.compile``.
Before anything is timed, every sparse layer is checked against float64, and what runs inference
also by its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparseconv.bench.cases import layer_problem
from sparseconv.bench.document import threads_text
from sparseconv.bench.network import breakdown
from sparseconv.bench.network.dense import Network, inference_variants, training_variants
from sparseconv.bench.network.masked import masked_copy
from sparseconv.bench.network.steps import NEVER, compiled, training_bytes, training_steps
from sparseconv.bench.run import WrongResultError, check, first_line, times_and_ratios
from sparseconv.inference.optimize import optimize_for_inference
from sparseconv.measure import timing
from sparseconv.measure.machine import threads
from sparseconv.measure.memory import retain_freed_memory
from sparseconv.models import DSN
from sparseconv.ops import calls as kernels

MODES = ("train", "update", "inference", "latency")
BASELINES = ("masked_dense", "dense_best", "dense_compiled")
LENGTHS, THREADS, BATCH, ROUNDS = (24, 128, 512), (1, 2), 16, 12
# Seconds of calls in a row before the next candidate's turn: training takes one step after the
# other. With one step a turn, in caches that another had filled, the sparse step took 5.3 ms, not
# 3.6, at L = 24, one thread, and 13.8, not 13.2, at L = 128.
TURN = 0.1

Call = Callable[[], object]
Row = dict[str, Any]


class Task(NamedTuple):
    """One row, not measured yet."""

    name: str
    measure: Callable[[], Row]


def evolved(in_channels: int, n_classes: int) -> DSN:
    """The network with the kind of pattern that random growth tends to."""
    return DSN(in_channels, n_classes, init="random")


def tasks(
    *,
    lengths: Sequence[int] = LENGTHS,
    threads: Sequence[int] = THREADS,
    rounds: int = ROUNDS,
    modes: Sequence[str] = MODES,
    baselines: Sequence[str] = BASELINES,
    batch: int = BATCH,
    build: Callable[[int, int], DSN] = evolved,
) -> list[Task]:
    """The network in every mode, at every length, with every number of threads.

    Args:
        lengths: samples of a series.
        threads: torch's threads.
        rounds: pairs of neighbours.
        modes: of ``MODES``. ``"train"`` is zero_grad, forward, loss, backward, Adam, masks;
            ``"update"`` prunes and grows in each step as well, beside a ``"plain_step"`` that does
            not; ``"latency"`` is ``"inference"`` of one series.
        baselines: of ``BASELINES``; an update is compared with ``masked_dense`` only.
            One that cannot run is left out of its row, with the reason under ``"absent"``.
        batch: series in a batch.
        build: makes the network from its numbers of channels and classes.

    Raises:
        WrongResultError: of a task: a kernel or network is wrong; nothing of it was timed.
    """

    def measurements() -> Iterator[Task]:
        masked = [name for name in baselines if name == "masked_dense"]
        for mode in modes:
            for length in lengths:
                X = torch.zeros(1 if mode == "latency" else batch, 1, length)
                beside = masked if mode == "update" else baselines
                measure = partial(_one_batch, mode, build, X, rounds=rounds, baselines=beside)
                yield Task(f"DSN {mode} L={length}", measure)

    return [
        Task(f"{name}, {threads_text(count)}", partial(_reproducibly, count, measure))
        for name, measure in measurements()
        for count in threads
    ]


def _reproducibly(count: int, measure: Callable[[], Row]) -> Row:
    retain_freed_memory()  # as train() does; either side gains
    with torch.random.fork_rng(devices=[]), threads(count):
        torch.manual_seed(0)
        return measure()


def _one_batch(mode: str, build: Callable[[int, int], DSN], X: Tensor, **settings: Any) -> Row:
    model, X = build(1, 2), torch.randn_like(X)
    if mode in ("train", "update"):
        row = training_row(mode, model, X, torch.arange(len(X)) % 2, details=True, **settings)
    else:
        row = _inference_row(mode, model, X, **settings)
    return row


# Training


def training_row(
    mode: str,
    model: DSN,
    X: Tensor,
    y: Tensor,
    *,
    rounds: int = 20,
    baselines: Sequence[str] = ("masked_dense",),
    details: bool = False,
) -> Row:
    """Measure the training step of a model, which is left as it is, on one batch.

    ``details`` adds where the time goes, and the memory of a step.

    Raises:
        WrongResultError: a kernel is wrong; nothing was timed.
    """
    check_layers(model, len(X), X.shape[2])
    torch.compiler.reset()  # or the eighth shape of a run is not compiled any more
    every = 1 if mode == "update" else NEVER
    calls: dict[str, Call] = {}
    absent, settings = {}, {}
    for name in ("sparse", *baselines):
        ways = training_variants(model) if name == "dense_best" else (name,)
        try:
            steps = training_steps(model, tuple(ways), update_every=every)
            for step in steps.values():
                step(X, y)  # compiles
        except Exception as error:
            if name != "dense_compiled":
                raise
            absent[name] = first_line(error)
            continue
        candidates: dict[str, Call] = {way: partial(steps[way], X, y) for way in ways}
        best = _fastest(candidates)
        calls[name] = candidates[best]
        if name == "dense_best":
            settings[name] = best
    if mode == "update":  # in turns with the step that it is compared with
        (plain,) = training_steps(model, ["sparse"]).values()
        calls["plain_step"] = partial(plain, X, y)
    row = _row(mode, model, X, calls, rounds, absent) | {"settings": settings}
    if details:
        both = [name for name in ("sparse", "masked_dense") if name in calls]
        row["peak_bytes"] = {name: training_bytes(model, name, X, y) for name in both}
        row["breakdown"] = {name: breakdown.measure(calls[name]) for name in both}
    return row


# Inference


def _inference_row(
    mode: str, model: DSN, x: Tensor, *, rounds: int, baselines: Sequence[str]
) -> Row:
    torch.compiler.reset()
    for _ in range(10):  # statistics as training leaves them
        model(torch.randn(max(len(x), 8), *x.shape[1:]))
    model.eval()
    check_layers(model, len(x), x.shape[2])
    exact = masked_copy(model).double()(x.double()).detach()
    makers: dict[str, dict[str, Callable[[], Network]]] = {
        "sparse": {"optimize_for_inference": lambda: optimize_for_inference(model)},
        "masked_dense": {"plain": lambda: masked_copy(model).eval()},
        "dense_best": inference_variants(model, x),
        "dense_compiled": {
            "freezing": lambda: compiled(masked_copy(model).eval(), freezing=True),
            "not frozen": lambda: compiled(masked_copy(model).eval()),
        },
    }
    calls: dict[str, Call] = {}
    absent, settings = {}, {}
    with torch.inference_mode():
        for name in ("sparse", *baselines):
            right, wrong = {}, {}
            for setting, make in makers[name].items():
                try:
                    network = make()
                    _check_output(network(x), exact)
                except Exception as error:
                    if name == "sparse":
                        raise
                    wrong[setting] = first_line(error)
                else:
                    right[setting] = partial(network, x)
                    if name == "dense_compiled":  # one is enough: compiling takes half a minute
                        break
            if right:
                settings[name] = _fastest(right)
                calls[name] = right[settings[name]]
            else:
                absent[name] = "; ".join(f"{key}: {reason}" for key, reason in wrong.items())
        row = _row(mode, model, x, calls, rounds, absent) | {"settings": settings}
        both = [name for name in ("sparse", "masked_dense") if name in calls]
        row["breakdown"] = {name: breakdown.measure(calls[name]) for name in both}
    return row


def _fastest(calls: Mapping[str, Call]) -> str:
    if len(calls) == 1:
        return next(iter(calls))
    times = timing.interleave(calls, rounds=5, least_seconds=TURN)
    return min(times, key=lambda name: float(np.median(times[name])))


def _check_output(got: Tensor, exact: Tensor) -> None:
    """A network's float32 outputs beside the float64 ones, within torch's own tolerances."""
    try:
        torch.testing.assert_close(got.double(), exact, rtol=1.3e-6, atol=1e-5)
    except AssertionError as error:
        raise WrongResultError(f"the network's outputs are wrong: {error}") from None


# Rows


def check_layers(model: DSN, batch: int, length: int) -> None:
    """Compare the kernels with float64 on every sparse layer of a model, as it is.

    Raises:
        WrongResultError: some result is outside its error bound.
    """
    for layer in model.sparse_layers():
        check(kernels, layer_problem(layer, batch, length))


def _row(
    mode: str,
    model: DSN,
    X: Tensor,
    calls: Mapping[str, Call],
    rounds: int,
    absent: Mapping[str, str],
) -> Row:
    times = timing.interleave(calls, rounds=rounds, least_seconds=TURN)
    return {
        "model": type(model).__name__,
        "mode": mode,
        "length": X.shape[2],
        "batch": X.shape[0],
        "in_channels": X.shape[1],
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        **times_and_ratios(times),
        "absent": dict(absent),
    }
