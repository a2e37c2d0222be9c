"""Training step speed of whole networks by density, compared with the same networks dense.

Convolutions with more than one tap keep a share of their weights and run on these kernels; the
networks, except DSN, are compiled with ``backend="sparseconv"``. Each sparse network's outputs and
gradients are first compared with a dense network with the same weights. Then its step (zero_grad,
forward, loss, backward, Adam; no pattern update) is timed on one thread, interleaved with dense at
PyTorch's settings. Use an idle machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench.masked import images_of
from benchmarks.bench.networks import TURN, check_step
from benchmarks.recording import add_missing, machines, read_lines, rounded
from benchmarks.studies.blocks import pruned
from benchmarks.studies.published_networks import training_step
from benchmarks.studies.published_widths import FCN, EcgResNet, SpliceAI
from sparseconv.conversion import to_dense
from sparseconv.measure.machine import threads
from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate, interleave, milliseconds, ratio
from sparseconv.models import DSN, InceptionTime, ResNet
from sparseconv.nn.modules import deepcopy_model

RESULTS = Path(__file__).parents[1] / "results" / "densities.jsonl"


class Network(NamedTuple):
    """A network by density, and the shape of its batch."""

    build: Callable[[float], Any]
    shape: tuple[int, int, int] = (16, 1, 128)


def _pruned(make: Callable[[], Any], *shape: int) -> Network:
    return Network(lambda density: pruned(make(), 1, density), shape or (16, 1, 128))


NETWORKS = {
    # One kernel group keeps a density exactly.
    "DSN": Network(lambda density: DSN(1, 2, sparsity=1 - density, n_groups=1, init="random")),
    "InceptionTime": _pruned(lambda: InceptionTime(1, 2)),
    "ResNet": _pruned(lambda: ResNet(1, 2)),
    "FCN": _pruned(lambda: FCN(1, 2, (128, 256, 128))),
    "ECG ResNet": _pruned(lambda: EcgResNet(12, 2, (64, 128, 196, 256, 320)), 8, 12, 4096),
    "SpliceAI": _pruned(lambda: SpliceAI(4, 2, 32), 1, 4, 15000),
}
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05)
ROUNDS = 24
SIZES = ("batch", "in_channels", "n_timepoints")
DENSE: dict[str, Callable[[Any], Any]] = {  # PyTorch's settings
    "plain": deepcopy_model,
    "channels_last": images_of,
    "compiled": lambda model: torch.compile(deepcopy_model(model), dynamic=False),
}


def measure(path: Path, archive: Path | None = None) -> None:
    """Time the networks that the file lacks."""
    add_missing(path, ("network",), {(name,): partial(row, name) for name in NETWORKS})


def row(network: str) -> dict[str, Any]:
    """Check a network at each density, and time all with the dense one."""
    torch.manual_seed(0)
    build, (batch, channels, length) = NETWORKS[network]
    X, y = torch.randn(batch, channels, length), torch.arange(batch) % 2
    with threads(1):
        models = {f"{density:g}": build(density) for density in DENSITIES}
        dense = to_dense(models["1"])
        for model in map(comparable, models.values()):
            torch.compiler.reset()
            check_step(model, X, y)
            if network != "DSN":
                check_compiled(model, X, y)
        alike = comparable(dense)
        outputs = [make(alike).train()(X).detach() for make in DENSE.values()]
        for found in outputs[1:]:
            torch.testing.assert_close(found, outputs[0], rtol=1e-4, atol=1e-5)
        torch.compiler.reset()  # one forward is compiled only a few times; the rest would be eager
        ways = {name: make(dense) for name, make in DENSE.items()}
        if network != "DSN":
            models = {name: compiled(model) for name, model in models.items()}
        steps = {name: training_step(model) for name, model in (ways | models).items()}
        calls = {name: partial(step, X, y) for name, step in steps.items()}
        taken = interleave(calls, rounds=ROUNDS, least_seconds=TURN)
    fastest = min(ways, key=lambda name: float(np.median(taken[name])))
    return rounded({
        "batch": batch, "in_channels": channels, "n_timepoints": length, "rounds": ROUNDS,
        "fastest": fastest,
        "ms": {name: list(milliseconds(times)) for name, times in taken.items()},
        "ratio": {
            density: {name: list(ratio(taken, name, density)) for name in ways}
            for density in models
        },
    })  # fmt: skip


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="sparseconv", dynamic=False)


def comparable(model: nn.Module) -> Any:
    """Copy a network so that two ways to compute it agree: nothing is dropped, no ReLU reads 0."""
    copied = deepcopy_model(model)
    for layer in copied.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        elif isinstance(layer, nn.BatchNorm1d):  # a channel without weights is constant
            nn.init.uniform_(layer.bias, 0.1, 1.0)
    return copied


def check_compiled(model: nn.Module, X: Tensor, y: Tensor) -> None:
    """Compare the gradients of the compiled network with those of the network, in float64."""
    found = []
    for make in (deepcopy_model, lambda model: compiled(deepcopy_model(model))):
        network: Any = make(model.double())
        loss = F.nll_loss(network.train()(X.double()), y)
        found.append(torch.autograd.grad(loss, list(network.parameters())))
    for got, wanted in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, wanted)


def speeds(path: Path = RESULTS) -> dict[str, list[tuple[float, float]]]:
    """Return each network's densities and speeds relative to its fastest dense setting."""
    return {
        row["network"]: [
            (float(density), ratios[row["fastest"]][0]) for density, ratios in row["ratio"].items()
        ]
        for row in read_lines(path)
    }


def section(path: Path = RESULTS) -> str:
    """Tabulate each network's speedup over dense in Markdown."""
    rows = read_lines(path)
    header = ("network", "batch", "density", *(f"{name} / sparse" for name in DENSE), "ms, sparse")
    lines = [
        (row["network"], " x ".join(str(row[size]) for size in SIZES), f"{float(density):.0%}",
         *(str(Estimate(*found[way])) for way in DENSE), f"{row['ms'][density][0]:.2f}")
        for row in rows for density, found in row["ratio"].items()
    ]  # fmt: skip
    return (
        f"{Table(header, lines, text_columns=2).markdown()}\n\n{machines(rows)}. A training step "
        "in float32, on one thread; the batch is series x channels x time steps. Dense time "
        f"divided by sparse time: medians with 95 % intervals of {ROUNDS} interleaved rounds.\n"
    )
