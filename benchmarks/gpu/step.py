"""Training steps, sparse with pattern updates and dense, eager and as graphs, and their parts.

The dense network has ``nn.Conv1d`` instead of each sparse convolution and no masks, which is faster
than masked training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.target import PRECISIONS, Call, Row, Target, Timed, tf32
from sparseconv import DSTScheduler, to_dense
from sparseconv.models import DSN
from sparseconv.training.graphed import GraphedStep

BATCH = 16
BATCHES = 4  # different ones
NEVER = 10**9


def model_of(target: Target, name: str, blocks: bool = False) -> nn.Module:
    nf, wide, kernel_size, depth, *_ = target.sizes
    options = {"kernel_size": kernel_size, "depth": depth, "padding": "centred-zeros"}
    options |= {"nf": wide, "block": 16} if blocks else {"nf": nf}
    torch.manual_seed(0)
    model = DSN(1, 2, **options, backend="reference" if name == "dense" else name)
    return (to_dense(model) if name == "dense" else model).to(target.device)


def batches(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw series ``(BATCHES, BATCH, 1, length)`` and their classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCHES, BATCH, 1, length, generator=generator)
    y = torch.randint(0, 2, (BATCHES, BATCH), generator=generator)
    return x.to(device), y.to(device)


def loss(model: nn.Module, x: Tensor, y: Tensor, precision: str) -> Tensor:
    half = PRECISIONS[precision][0] == torch.bfloat16
    # Cached casts of weights would be those of the capture.
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
        return F.nll_loss(model(x), y)


def stepper(
    target: Target, model: nn.Module, length: int, precision: str, mode: str, updates: bool
) -> Callable[[int], None]:
    """Return a function that trains for a step; one in ``sizes.steps`` may update patterns."""
    x, y = batches(length, target.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, capturable=mode == "graph")
    scheduler = None
    if updates:
        scheduler = DSTScheduler(
            model, optimizer, update_every=target.sizes.steps, end_step=NEVER, decay_steps=NEVER
        )

    def eager(series: Tensor, classes: Tensor) -> tuple[Tensor, ...]:
        optimizer.zero_grad()
        found = loss(model, series, classes, precision)
        found.backward()
        optimizer.step()
        return (found.detach(),)

    step = GraphedStep(model, eager, optimizer) if mode == "graph" else eager

    def run(i: int) -> None:
        step(x[i % BATCHES], y[i % BATCHES])
        if scheduler is not None:
            scheduler.step()

    return run


def in_turn(target: Target, calls: Sequence[Callable[[int], None]], streams: bool) -> Call:
    """Return a function that takes ``sizes.steps`` steps of each network, in streams if set."""
    places: list[Any] = [nullcontext() for _ in calls]
    if streams and target.device.type == "cuda":
        places = [torch.cuda.stream(torch.cuda.Stream()) for _ in calls]
        target.clock()  # the networks were made on another stream

    def run() -> None:
        for i in range(target.sizes.steps):
            for call, place in zip(calls, places, strict=True):
                with place:
                    call(i)

    return run


def row(target: Target, length: int, blocks: bool = False) -> Row:
    """Time one step in every form, with its share of an update and without."""
    x, y = batches(length, torch.device("cpu"))
    with torch.no_grad():
        dense = model_of(target, "dense", blocks).cpu().double()
        exact = float(loss(dense, x[0].double(), y[0], "fp32"))

    def made(name: str, precision: str, mode: str, updates: bool) -> Timed:
        allowed, device = PRECISIONS[precision][1], target.device
        with tf32(allowed):
            model = model_of(target, name, blocks).train()
            found = float(loss(model, x[0].to(device), y[0].to(device), precision).detach())
            call = stepper(target, model, length, precision, mode, updates)
        error = abs(found - exact) / abs(exact)
        return Timed(in_turn(target, [call], False), allowed, target.sizes.steps, error)

    modes = ("eager", "graph")[: 1 + target.graphs]
    # Autocast runs single weights in bfloat16 too, which gains nothing.
    of_sparse = ("TF32", "bf16") if blocks else ("fp32", "TF32")
    sparse = product(target.sparse(blocks), of_sparse, modes, (False, True))
    dense = product(("dense",), PRECISIONS, modes, (False,))
    makes = {
        f"{name} {precision} {mode}{' with update' * updates}":
            partial(made, name, precision, mode, updates)
        for name, precision, mode, updates in (*sparse, *dense)
    }  # fmt: skip
    return target.row("training step", length, makes)


def update_rows(target: Target, lengths: Sequence[int]) -> Iterator[Row]:
    """Time updates of the network's patterns, one ``DSTScheduler.step`` each."""

    def made(grow: str, blocks: bool) -> Timed:
        model = model_of(target, target.sparse(blocks)[0], blocks).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, capturable=target.graphs)
        dst = DSTScheduler(model, optimizer, update_every=1, end_step=NEVER, grow=grow)
        x, y = batches(lengths[0], target.device)

        def update() -> None:
            if grow == "gradient":  # which needs a backward pass, whose time counts
                loss(model, x[0], y[0], "fp32").backward()
            dst.step()

        loss(model, x[0], y[0], "fp32").backward()
        optimizer.step()  # gives the optimizer its state
        return Timed(update)

    makes = {
        f"{grow}{', blocks' * blocks}": partial(made, grow, blocks)
        for grow, blocks in product(("random", "gradient"), (False, True))
    }
    yield target.row("update", lengths[0], makes)


def network_rows(target: Target, lengths: Sequence[int]) -> Iterator[Row]:
    """Time a step of one network when several train in one process, with their updates."""

    def made(count: int, streams: bool) -> Timed:
        with tf32(True):
            models = [model_of(target, target.backends[-1]).train() for _ in range(count)]
            mode = "graph" if target.graphs else "eager"
            calls = [stepper(target, x, lengths[0], "TF32", mode, True) for x in models]
        return Timed(in_turn(target, calls, streams), True, count * target.sizes.steps)

    makes = {
        f"{count} network{'s' * (count > 1)}{', a stream each' * streams}": partial(
            made, count, streams
        )
        for count, streams in ((1, False), (4, False), (4, True), (8, True))
    }
    yield target.row("step of a network", lengths[0], makes)


def norm_rows(target: Target, lengths: Sequence[int]) -> Iterator[Row]:
    """Time a module's BatchNorm and ReLU, forward and backward, eager and compiled."""
    width = 3 * target.sizes.nf

    def made(compiled: bool) -> Timed:
        norm: Any = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU()).to(target.device)
        x = torch.randn(BATCH, width, lengths[0], device=target.device, requires_grad=True)
        inputs, gradient = (x, *norm.parameters()), torch.randn_like(x)
        call = torch.compile(norm) if compiled else norm
        timed = Timed(lambda: torch.autograd.grad(call(x), inputs, gradient))
        return target.graphed(timed) if target.graphs else timed

    makes = {"torch": partial(made, False), "compiled": partial(made, True)}
    yield target.row("BatchNorm and ReLU", lengths[0], makes)


def rows(target: Target, lengths: Sequence[int], blocks: bool = False) -> Iterator[Row]:
    return (row(target, length, blocks) for length in lengths[:2])
