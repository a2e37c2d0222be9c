"""Speed of published networks, sparse and compiled, compared with the fastest dense version.

Kernels with more than one tap, in two networks all kernels, keep 10 % of their weights, or 20 % in
blocks of 16 x 16 channels under autocast to bfloat16. Outputs and gradients are first compared with
those of a dense network with the same weights. Then all versions are timed interleaved, on one
thread: plain, as images in channels-last memory and compiled by Inductor; sparse as converted and
compiled with ``backend="sparseconv"``. In inference, dense compiled versions guard no attributes of
modules, and sparse ones those of this folder's classes. Use an idle machine: 17 networks take about
an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench.masked import images_of
from benchmarks.bench.networks import TURN, check_cast_step, check_float32, check_step
from benchmarks.recording import add_missing, machines, read_lines, rounded
from benchmarks.studies import published_widths as widths
from benchmarks.studies.blocks import pruned
from benchmarks.studies.published_networks import training_step
from sparseconv.conversion import to_dense
from sparseconv.core.modules import deepcopy_model
from sparseconv.inference import optimize_for_inference
from sparseconv.measure.machine import threads
from sparseconv.measure.table import Table
from sparseconv.measure.timing import LEAST_ROUNDS, Estimate, interleave, milliseconds, ratio
from sparseconv.models import InceptionTime, ResNet

RESULTS = Path(__file__).parents[1] / "results" / "networks.jsonl"
ROUNDS, SECONDS = 24, 20.0  # fewer rounds than that, if they would take longer


class Network(NamedTuple):
    """A dense network, the shape of its batch, and from how many taps on its kernels are pruned."""

    make: Callable[[], Any]
    shape: tuple[int, int, int]
    least_taps: int = 2

    def sparse(self, density: float, block: int = 1) -> nn.Module:
        return pruned(self.make(), block, density, self.least_taps)


NETWORKS = {
    "InceptionTime": Network(lambda: InceptionTime(1, 2), (16, 1, 128)),
    "InceptionTime, long": Network(lambda: InceptionTime(1, 2), (16, 1, 512)),
    "ResNet": Network(lambda: ResNet(1, 2), (16, 1, 128)),
    "FCN": Network(widths.fcn, (16, 1, 128)),
    "ECG ResNet": Network(widths.ecg_resnet, (8, 12, 4096)),
    "SpliceAI": Network(widths.splice_ai, (1, 4, 15000)),
    "Basset": Network(widths.basset, (16, 4, 600)),
    "M5": Network(widths.m5, (16, 1, 8000)),
    "TCN": Network(widths.tcn, (16, 1, 784)),
    "WaveNet": Network(widths.wavenet, (4, 1, 12285)),
    "PhaseNet": Network(widths.phase_net, (16, 3, 3001)),
    "U-Sleep": Network(widths.u_sleep, (1, 2, 134400)),
    "EQTransformer": Network(widths.eq_transformer, (16, 3, 6000)),
    "HiFi-GAN V1": Network(
        lambda: widths.hifi_gan(512, (8, 8, 2, 2), dict.fromkeys((3, 7, 11), (1, 3, 5)), 2),
        (1, 80, 32),
    ),
    "HiFi-GAN V3": Network(
        lambda: widths.hifi_gan(256, (8, 8, 4), {3: (1, 2), 5: (2, 6), 7: (3, 12)}, 1),
        (2, 80, 32),
    ),
    "Wav2Letter": Network(widths.wav2letter, (2, 13, 1000), least_taps=1),
    "Conv-TasNet": Network(widths.conv_tasnet, (1, 1, 16000), least_taps=1),
}
UNGUARDED: Any = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
DENSE: dict[str, Callable[[Any], Any]] = {  # PyTorch's settings
    "plain": deepcopy_model,
    "channels_last": images_of,
    "compiled": lambda model: torch.compile(
        deepcopy_model(model), dynamic=False, options=None if model.training else UNGUARDED
    ),
}
SPARSE: dict[str, Callable[[Any], Any]] = {
    "sparse": deepcopy_model,
    "sparse, compiled": lambda model: (
        compiled(deepcopy_model(model)) if model.training else optimize_for_inference(model)
    ),
}
MODES = {
    "step": "training step",
    "latency": "inference, one series",
    "inference": "inference",
    "blocks": "training step, blocks",
}


def measure(path: Path, archive: Path | None = None) -> None:
    jobs = {job: partial(row, *job) for job in product(NETWORKS, MODES)}
    add_missing(path, ("network", "mode"), jobs)


def row(network: str, mode: str) -> dict[str, Any]:
    torch.manual_seed(0)
    batch, channels, length = NETWORKS[network].shape
    X, y = torch.randn(batch, channels, length), torch.arange(batch) % 2
    model = NETWORKS[network].sparse(*((0.2, 16) if mode == "blocks" else (0.1,)))
    tracing = torch._dynamo.config.patch(allow_rnn=True)  # or an LSTM breaks the graph
    with threads(1), tracing, torch.set_grad_enabled(mode in ("step", "blocks")):
        if mode == "step":
            check(model, X, y)
            check_dense(model, X)
        elif mode == "blocks":
            for make in SPARSE.values():  # one class: the gradients of balanced ones nearly cancel
                check_cast_step(comparable(model), X, torch.zeros_like(y), make)
        else:
            for _ in range(3):  # statistics as training leaves them
                model.train()(X)
            X = X[:1] if mode == "latency" else X
            exact = to_dense(model.eval()).double()(X.double())
        torch.compiler.reset()  # one forward is compiled only a few times; the rest would be eager
        sources = {**dict.fromkeys(DENSE, to_dense(model)), **dict.fromkeys(SPARSE, model)}
        ways = {name: make(sources[name]) for name, make in (DENSE | SPARSE).items()}
        if mode in ("step", "blocks"):
            calls = {name: partial(training_step(way), X, y) for name, way in ways.items()}
        else:
            calls = {name: partial(way.eval(), X) for name, way in ways.items()}
            for call in calls.values():
                check_float32("the network's outputs are", call(), exact)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "blocks", cache_enabled=False):
            for call in calls.values():
                call()
            begin = time.perf_counter()
            for call in calls.values():
                call()
            rounds = min(ROUNDS, int(SECONDS / (time.perf_counter() - begin)))
            taken = interleave(calls, rounds=max(LEAST_ROUNDS, rounds), least_seconds=TURN)
    median = {name: float(np.median(seconds)) for name, seconds in taken.items()}
    dense, sparse = (min(names, key=median.__getitem__) for names in (DENSE, SPARSE))
    return rounded({
        "batch": len(X), "in_channels": channels, "n_timepoints": length,
        "rounds": len(taken[dense]), "dense": dense, "sparse": sparse,
        "ratio": list(ratio(taken, dense, sparse)),
        "ms": {name: list(milliseconds(seconds)) for name, seconds in taken.items()},
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


def check(model: nn.Module, X: Tensor, y: Tensor) -> None:
    """Compare a step's outputs and gradients, compiled or not, with the dense network's."""
    torch.compiler.reset()
    check_step(comparable(model), X, y)
    check_compiled(comparable(model), X, y)


def check_dense(model: nn.Module, X: Tensor) -> None:
    """Compare the outputs of the dense versions."""
    dense = to_dense(comparable(model))
    first, *others = (make(dense).train()(X).detach() for make in DENSE.values())
    for found in others:
        torch.testing.assert_close(found, first, rtol=1e-4, atol=1e-5)


def check_compiled(model: nn.Module, X: Tensor, y: Tensor) -> None:
    """Compare the gradients of the compiled network with those of the network, in float64."""
    found = []
    for make in SPARSE.values():
        network: Any = make(deepcopy_model(model).double())
        loss = F.nll_loss(network.train()(X.double()), y)
        found.append(torch.autograd.grad(loss, list(network.parameters())))
    for got, wanted in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, wanted)


def section(path: Path = RESULTS) -> str:
    """Tabulate each network's speedup over the fastest dense version in Markdown."""
    rows = read_lines(path)
    cells = {(row["network"], row["mode"]): cell(row) for row in rows}
    lines = [
        {"network": name, "batch": " x ".join(map(str, NETWORKS[name].shape))}
        | {title: cells.get((name, mode), "") for mode, title in MODES.items()}
        for name in dict.fromkeys(row["network"] for row in rows)
    ]
    table = Table.of(lines, ("network", "batch"))
    return (
        f"{table.markdown()}\n\n{machines(rows)}. The time of the fastest dense version, which is "
        "named, divided by that of the sparse one: medians with 95 % intervals of up to "
        f"{ROUNDS} interleaved rounds on one thread. The sparse network is compiled; `*`: it is "
        "faster as converted, which is shown. Kernels with more than one tap have 10 % of their "
        "weights, *blocks* 20 % under autocast to bfloat16 like its dense versions, in Wav2Letter "
        "and Conv-TasNet also 1x1 convolutions.\n"
    )


def cell(row: dict[str, Any]) -> str:
    mark = "*" if row["sparse"] == "sparse" else ""
    return f"{Estimate(*row['ratio'])}{mark}<br>{row['dense']}"
