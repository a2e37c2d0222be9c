"""The whole network's training step: sparse with pattern updates, beside dense; eager, graphed.

Dense is the same network with ``nn.Conv1d`` in the place of each sparse convolution: no masks are
applied, which makes it a faster baseline than masked training is.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.layer import compiled
from benchmarks.gpu.target import PRECISIONS, Call, Candidate, Row, Target, tf32
from sparseconv import DSTScheduler, to_dense
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


def steps(target: Target, model: nn.Module, length: int, precision: str, mode: str) -> Call:
    """So many steps as a call is timed for; of a sparse network, the last updates the patterns."""
    x, y = batches(length, target.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, capturable=mode == "graph")
    scheduler = None
    if isinstance(model, DSN) and model.sparse_layers():
        scheduler = DSTScheduler(
            model, optimizer, update_every=target.sizes.steps, end_step=NEVER, decay_steps=NEVER
        )
    forward: Any = compiled(model) if mode == "compiled" else model

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


def row(target: Target, length: int, rounds: int) -> Row:
    """One step with its share of an update, in every form; what cannot run says why."""
    x, y = batches(length, target.device)
    models: dict[str, nn.Module] = {name: network(target, name) for name in target.backends}
    models["dense"] = to_dense(models[target.backends[0]])
    with torch.no_grad():
        exact = float(loss(copy.deepcopy(models["dense"]).double(), x[0].double(), y[0], "fp32"))
    candidates: dict[str, Candidate] = {}
    errors, absent = {}, dict(target.missing)
    for precision, (_, allowed) in PRECISIONS.items():
        for name, model in models.items():
            if precision == "bf16" and name != "dense":
                continue  # autocast would run sparse kernels in bfloat16, which is no gain there
            modes = ("eager", "graph") if target.graphs else ("eager",)
            modes += ("compiled",) * (target.graphs and name == "dense")
            for mode in modes:
                label, twin = f"{name} {precision} {mode}", copy.deepcopy(model).train()
                try:
                    with tf32(allowed):
                        found = float(loss(copy.deepcopy(twin), x[0], y[0], precision).detach())
                        call = steps(target, twin, length, precision, mode)
                        call()
                except Exception as reason:
                    absent[label] = f"{type(reason).__name__}: {reason}"
                    continue
                errors[label] = abs(found - exact) / abs(exact)
                candidates[label] = Candidate(call, allowed)
    return {
        "computation": "training step", "length": length, "batch": BATCH,
        "samples_ms": target.milliseconds(candidates, rounds=rounds, steps=target.sizes.steps),
        "error": errors, "absent": absent,
    }  # fmt: skip
