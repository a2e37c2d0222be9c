"""The whole network's training step: sparse with pattern updates, beside dense; eager, graphed.

Dense is the same network with ``nn.Conv1d`` in the place of each sparse convolution: no masks are
applied, which makes it a faster baseline than masked training is.
"""

from __future__ import annotations

import copy
import itertools
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
from sparseconv.training.graphed import GraphedStep

BATCH = 16
BATCHES = 4  # different ones, in turns
NEVER = 10**9


def model_of(target: Target, name: str) -> nn.Module:
    """The network on a backend, or the dense one."""
    nf, kernel_size, depth, *_ = target.sizes
    options = {"nf": nf, "kernel_size": kernel_size, "depth": depth, "padding": "centred-zeros"}
    torch.manual_seed(0)
    model = DSN(1, 2, **options, backend="reference" if name == "dense" else name)
    return (to_dense(model) if name == "dense" else model).to(target.device)


def batches(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Series ``(BATCHES, BATCH, 1, length)`` and their classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCHES, BATCH, 1, length, generator=generator)
    y = torch.randint(0, 2, (BATCHES, BATCH), generator=generator)
    return x.to(device), y.to(device)


def loss(model: nn.Module, x: Tensor, y: Tensor, precision: str) -> Tensor:
    half = PRECISIONS[precision][0] == torch.bfloat16
    # Cached casts of weights would be those of the capture.
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
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

    step = GraphedStep(model, eager, optimizer) if mode == "graph" else eager

    def run() -> None:
        for i in range(target.sizes.steps):
            step(x[i % BATCHES], y[i % BATCHES])
            if scheduler is not None:
                scheduler.step()

    return run


def row(target: Target, length: int, rounds: int) -> Row:
    """One step in every form, with its share of an update and without."""
    torch.compiler.reset()  # which compiles only so many versions of one function
    x, y = batches(length, target.device)
    models = {name: model_of(target, name) for name in (*target.backends, "dense")}
    with torch.no_grad():
        exact = float(loss(copy.deepcopy(models["dense"]).double(), x[0].double(), y[0], "fp32"))

    def made(label: str, updates: bool) -> tuple[dict[str, Candidate], float]:
        name, precision, mode, *_ = label.split()
        twin, allowed = copy.deepcopy(models[name]).train(), PRECISIONS[precision][1]
        with tf32(allowed):
            found = float(loss(copy.deepcopy(twin), x[0], y[0], precision).detach())
            call = steps(target, twin, length, precision, mode, updates)
            call()
        candidate = Candidate(call, allowed, target.sizes.steps)
        return {label: candidate}, abs(found - exact) / abs(exact)

    makes = {}
    for name, precision in itertools.product(models, PRECISIONS):
        # Autocast would run sparse kernels in bfloat16, which is no gain there.
        dense = name == "dense"
        modes = ["eager", "graph", *["compiled"] * dense] if target.graphs else ["eager"]
        for mode in modes if dense or precision != "bf16" else ():
            for update in ("",) if dense else ("", " with update"):
                label = f"{name} {precision} {mode}{update}"
                makes[label] = partial(made, label, bool(update))
    return target.row("training step", length, makes, rounds)


def planning(target: Target, rounds: int) -> Row:
    """What the first calls with a new pattern take, beside later ones, where kernels do nothing."""
    problem = on(target.device, target.layer(1).build())
    problem = problem._replace(x=problem.x[:1], grad=problem.grad[:1])
    known = problem.pattern

    def all_three(ops: Any, new: bool) -> None:
        pattern = KernelCSR(known.crow_indices, known.col_indices, known.shape) if new else known
        for call in sparse_calls(ops, problem._replace(pattern=pattern)).values():
            call()

    def made(backend: str) -> tuple[dict[str, Candidate], float]:
        ops = target.ops(backend)
        return {
            f"{backend} new pattern": Candidate(partial(all_three, ops, True)),
            f"{backend} known pattern": Candidate(partial(all_three, ops, False)),
        }, 0.0

    makes = {backend: partial(made, backend) for backend in target.backends}
    return target.row("planning", 1, makes, rounds)
