"""Other authors' networks with blocks of channels, compared with single weights and dense.

All convolutions with more than one tap are pruned to 20 % of their weights, as single weights or in
blocks of 16 x 16 channels. They are converted with ``sc.convert`` and fine-tuned with a
``DSTScheduler`` (RigL) for as long as the dense network was trained. Blocks and dense run in
bfloat16 (autocast), and single weights run in float32. Training steps are timed interleaved, on one
thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

import sparseconv as sc
from benchmarks.paper.archives import open_archive
from benchmarks.paper.tables.cells import spread
from benchmarks.recording import add_missing, read_lines, rounded
from benchmarks.studies.published_networks import BATCH, Data, accuracy, fit, summary, training_step
from sparseconv.core.modules import deepcopy_model
from sparseconv.measure.machine import threads
from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate, interleave
from sparseconv.models import InceptionTime, ResNet

RESULTS = Path(__file__).parents[1] / "results" / "blocks" / "networks.jsonl"
NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "ResNet": ResNet,
    "InceptionTime": partial(InceptionTime, variant="tsai"),
}
DATASETS = ("GunPoint", "CBF", "ArrowHead", "ECG200", "Plane")
DENSITY, EPOCHS, SEEDS, ROUNDS = 0.2, 40, range(3), 12
WAYS = {"dense": torch.bfloat16, "single weights": torch.float32, "blocks": torch.bfloat16}


def in_precision(way: str) -> Any:
    # Without the cache: it would keep the weights of the first step as long as this is entered.
    enabled = WAYS[way] is torch.bfloat16
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled, cache_enabled=False)


def pruned(
    dense: nn.Module, block: int, density: float = DENSITY, least_taps: int = 2
) -> nn.Module:
    """Copy, prune and convert the convolutions with at least ``least_taps``."""
    model, names = deepcopy_model(dense), []
    for name, layer in model.named_modules():
        kinds = nn.Conv1d, nn.ConvTranspose1d
        if isinstance(layer, kinds) and layer.kernel_size[0] >= least_taps:
            fits = block if min(layer.weight.shape[:2]) >= block else 1
            mask = sc.block_mask(layer.weight, density, block=fits)
            prune.custom_from_mask(layer, "weight", mask)
            names.append(name)
    return sc.convert(model, layers=names, block=block).model


def networks(network: str, data: Data, seed: int, epochs: int) -> dict[str, nn.Module]:
    """Train the dense network, and prune it in both ways."""
    torch.manual_seed(seed)
    dense = NETWORKS[network](data.X_train.shape[1], data.classes)
    with in_precision("dense"):
        fit(dense, data, epochs, seed)
    return {"dense": dense, "single weights": pruned(dense, 1), "blocks": pruned(dense, 16)}


def run(network: str, source: str, seed: int) -> dict[str, Any]:
    """Fine-tune in all ways, and test; with the first seed, also time."""
    data = Data.load(source)
    row: dict[str, Any] = {"epochs": EPOCHS, "accuracy": {}}
    with threads(1):
        for way, model in networks(network, data, seed, EPOCHS).items():
            with in_precision(way):
                fit(model, data, EPOCHS, seed + 1, moving=way != "dense")
                row["accuracy"][way] = accuracy(model, data)
        return rounded(row | (times(network, data) if seed == SEEDS[0] else {}))


def times(network: str, data: Data) -> dict[str, Any]:
    """Time a training step of one batch in all ways, and in two of them compiled."""
    torch.compiler.reset()  # it compiles one forward for a limited number of shapes
    models = networks(network, data, 0, 0)
    X, y = data.X_train[:BATCH], data.y_train[:BATCH]
    ways = {way: deepcopy_model(model) for way, model in models.items()}
    for way in ("dense", "blocks"):
        ways[f"{way}, compiled"] = torch.compile(deepcopy_model(models[way]))
    calls = {name: partial(training_step(model), X, y) for name, model in ways.items()}
    taken = interleave(
        calls, rounds=ROUNDS, context=lambda name: in_precision(name.partition(",")[0])
    )
    return {"shape": list(data.X_train.shape), **summary(taken, "blocks")}


def section(path: Path = RESULTS) -> str:
    """Tabulate times and accuracies over all seeds in Markdown."""
    recorded, rows = read_lines(path), []
    for timed in (row for row in recorded if "ratio" in row):
        case = {name: timed[name] for name in ("network", "dataset")}
        runs = [row for row in recorded if case.items() <= row.items()]
        ratios = [str(Estimate(*found)) for found in timed["ratio"].values()]
        scores = [spread([100 * row["accuracy"][way] for row in runs], 1) for way in WAYS]
        rows.append((*case.values(), str(timed["shape"][2]), f"{timed['ms']['blocks'][0]:.0f}",
                     *ratios, *scores))  # fmt: skip
    ratios_of = (f"{way} / blocks" for way in timed["ratio"])
    header = ("network", "data set", "time steps", "blocks, ms", *ratios_of,
              *(f"{way}, %" for way in WAYS))  # fmt: skip
    about = recorded[-1]["machine"]
    where = f"{about['cpu']}, 1 thread, torch {about['torch']}, {about['date']}"
    return f"{Table(header, rows, text_columns=2).markdown()}\n\n{where}.\n"


def measure(path: Path, archive: Path | None = None) -> None:
    sources = open_archive(archive).sources
    jobs = {
        (network, name, seed): partial(run, network, sources[name], seed)
        for seed, network, name in product(SEEDS, NETWORKS, DATASETS)
    }
    add_missing(path, ("network", "dataset", "seed"), jobs)
