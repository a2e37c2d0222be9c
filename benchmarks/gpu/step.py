"""The whole network's training step: sparse with pattern updates, beside dense; eager, graphed.

Dense is the same network with ``nn.Conv1d`` in the place of each sparse convolution: no masks are
applied, which makes it a faster baseline than masked training is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.layer import on
from benchmarks.gpu.target import PRECISIONS, Call, Candidate, Row, Target, tf32
from sparseconv import DSTScheduler, KernelCSR, to_dense
from sparseconv.bench.run import sparse_calls
from sparseconv.models import DSN

BATCH = 16
BATCHES = 4  # different ones, in turns
NEVER = 10**9


def network(target: Target, backend: str) -> DSN:
    sizes = target.sizes
    torch.manual_seed(0)
    return DSN(
        1,
        2,
        nf=sizes.nf,
        kernel_size=sizes.kernel_size,
        depth=sizes.depth,
        padding="centred-zeros",
        backend=backend,
    ).to(target.device)


def model_of(target: Target, name: str) -> nn.Module:
    """The network on a backend, or the dense one."""
    return network(target, name) if name != "dense" else to_dense(network(target, "reference"))


def batches(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Series ``(BATCHES, BATCH, 1, length)`` and their classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCHES, BATCH, 1, length, generator=generator)
    y = torch.randint(0, 2, (BATCHES, BATCH), generator=generator)
    return x.to(device), y.to(device)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    half = PRECISIONS[precision][0] == torch.bfloat16
    # Cached casts of weights would be those of the capture.
    return torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False)


def loss(model: nn.Module, x: Tensor, y: Tensor, precision: str) -> Tensor:
    with autocast(precision, x.device):
        return F.nll_loss(model(x), y)


def steps(
    target: Target, model: nn.Module, length: int, precision: str, mode: str, updates: bool
) -> Call:
    """So many steps as a call is timed for; the last may update the patterns."""
    x, y = batches(length, target.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, capturable=mode == "graph")
    scheduler = None
    if updates:
        scheduler = DSTScheduler(
            model, optimizer, update_every=target.sizes.steps, end_step=NEVER, decay_steps=NEVER
        )
    forward: Any = model
    if mode == "compiled":
        forward = torch.compile(model, mode="reduce-overhead", dynamic=False)

    def eager(series: Tensor, classes: Tensor) -> tuple[Tensor, ...]:
        optimizer.zero_grad()
        found = loss(forward, series, classes, precision)
        found.backward()
        optimizer.step()
        return (found.detach(),)

    step = target.graphed_step(model, eager, optimizer) if mode == "graph" else eager

    def run() -> None:
        for i in range(target.sizes.steps):
            step(x[i % BATCHES], y[i % BATCHES])
            if scheduler is not None:
                scheduler.step()

    return run


def forms(target: Target, models: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, str, bool]]:
    """Model, precision and mode, and whether patterns are updated."""
    for precision in PRECISIONS:
        for name in models:
            if precision == "bf16" and name != "dense":
                continue  # autocast would run sparse kernels in bfloat16, which is no gain there
            for mode in ("eager", "graph")[: 1 + target.graphs]:
                if name != "dense":
                    yield name, precision, mode, True
                yield name, precision, mode, False
    if target.graphs:
        yield from (("dense", precision, "compiled", False) for precision in PRECISIONS)


def row(target: Target, length: int, rounds: int) -> Row:
    """One step in every form, with its share of an update and without; what cannot run says why."""
    torch.compiler.reset()  # which compiles only so many versions of one function
    x, y = batches(length, target.device)
    models = {name: model_of(target, name) for name in (*target.backends, "dense")}
    with torch.no_grad():
        exact = float(loss(copy.deepcopy(models["dense"]).double(), x[0].double(), y[0], "fp32"))
    candidates: dict[str, Candidate] = {}
    errors, absent = {}, dict(target.missing)
    for name, precision, mode, updates in forms(target, models):
        label = f"{name} {precision} {mode}" + " with update" * updates
        twin, allowed = copy.deepcopy(models[name]).train(), PRECISIONS[precision][1]
        try:
            with tf32(allowed):
                found = float(loss(copy.deepcopy(twin), x[0], y[0], precision).detach())
                call = steps(target, twin, length, precision, mode, updates)
                call()
        except Exception as reason:
            absent[label] = f"{type(reason).__name__}: {reason}"
            continue
        errors[label] = abs(found - exact) / abs(exact)
        candidates[label] = Candidate(call, allowed, target.sizes.steps)
    before = target.state()
    return {
        "computation": "training step", "length": length, "batch": BATCH,
        "samples_ms": target.milliseconds(candidates, rounds=rounds),
        "error": errors, "absent": absent, "clocks": [before, target.state()],
    }  # fmt: skip


def planning(target: Target, rounds: int) -> Row:
    """What a new pattern of one layer costs: the first calls with it, beside later ones, on a
    series so short that the kernels take no time."""
    candidates: dict[str, Candidate] = {}
    problem = on(target.device, target.layer(1).build())
    problem = problem._replace(x=problem.x[:1], grad=problem.grad[:1])
    known = problem.pattern

    def all_three(ops: Any, new: bool) -> None:
        pattern = KernelCSR(known.crow_indices, known.col_indices, known.shape) if new else known
        for call in sparse_calls(ops, problem._replace(pattern=pattern)).values():
            call()

    for backend in target.backends:
        for name, new in (("new pattern", True), ("known pattern", False)):
            call = partial(all_three, target.ops(backend), new)
            candidates[f"{backend} {name}"] = Candidate(call)
    return {
        "computation": "planning", "length": 1, "batch": 1,
        "samples_ms": target.milliseconds(candidates, rounds=rounds),
        "error": dict.fromkeys(candidates, 0.0), "absent": dict(target.missing),
        "clocks": [target.state()],
    }  # fmt: skip
