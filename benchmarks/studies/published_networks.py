"""Other authors' networks, pruned and converted.

Each network is built with its package's defaults, trained dense, pruned with
``torch.nn.utils.prune`` (the smallest 90 % of every convolution's weights) and converted with
``sc.convert``. Four versions are fine-tuned for the same number of epochs: dense and unpruned,
masked dense (the pruning hooks), converted with a fixed pattern, and converted with a
``DSTScheduler`` (RigL, as in its paper: 0.3, a cosine to 0). A training step and inference of the
first three are timed interleaved, on one thread.

The packages are not dependencies. To run this, install them alongside sparseconv with ``[tsc]``:

    pip install torch==2.13.0 tsai torch-ecg pytorch-tcn

fastai installs a torchvision for CUDA, which a CPU build of torch cannot load; uninstall that
torchvision.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from importlib import import_module
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

import sparseconv as sc
from benchmarks.paper.archives import read
from benchmarks.paper.tables.cells import spread
from benchmarks.recording import add_missing, read_lines, rounded
from sparseconv.core.modules import deepcopy_model
from sparseconv.measure.machine import threads
from sparseconv.measure.table import Table
from sparseconv.measure.timing import Estimate, Times, interleave, milliseconds, ratio
from sparseconv.running import evaluate

RESULTS = Path(__file__).parents[1] / "results" / "published_networks.jsonl"
PRUNED = 0.9
BATCH = 16
LR = 1e-3  # at first; a cosine ends it at 0
SEEDS = range(3)
ROUNDS = 24  # pairs of times
WAYS = ("dense", "masked", "converted")


class Network(NamedTuple):
    """A published network and its data set."""

    name: str
    package: str
    dataset: str
    build: Callable[[int, int], nn.Module]  # of channels and classes
    epochs: int = 20  # dense, and the same number of fine-tuning


def _tsai(name: str) -> Callable[[int, int], nn.Module]:
    def build(channels: int, classes: int) -> nn.Module:
        return getattr(import_module(f"tsai.models.{name}"), name)(channels, classes)

    return build


def _ecg_crnn(channels: int, classes: int) -> nn.Module:
    from torch_ecg.model_configs import ECG_CRNN_CONFIG
    from torch_ecg.models import ECG_CRNN

    names = [str(i) for i in range(classes)]
    return ECG_CRNN(classes=names, n_leads=channels, config=deepcopy(ECG_CRNN_CONFIG))


def _tcn(channels: int, classes: int) -> nn.Module:
    from pytorch_tcn import TCN

    features = TCN(channels, [25] * 8, kernel_size=7)  # sizes of tsai's TCN
    return nn.Sequential(features, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(25, classes))


NETWORKS = (
    Network("InceptionTime", "tsai", "GunPoint", _tsai("InceptionTime")),
    Network("FCN", "tsai", "ArrowHead", _tsai("FCN"), epochs=80),
    Network("ECG_CRNN", "torch-ecg", "BasicMotions", _ecg_crnn, epochs=60),
    Network("TCN", "pytorch-tcn", "BasicMotions", _tcn, epochs=40),
)


class Data(NamedTuple):
    """Series standardised by channel, and class indices."""

    X_train: Tensor
    y_train: Tensor
    X_test: Tensor
    y_test: Tensor
    classes: int

    @classmethod
    def load(cls, name: str) -> Data:
        found = read(name, "z-normalised")
        arrays = found.X_train, found.y_train, found.X_test, found.y_test
        return cls(*map(torch.as_tensor, arrays), classes=len(found.classes))


def run(network: Network, seed: int, path: Path) -> dict[str, Any]:
    """Train, prune, convert, fine-tune and test once.

    The first seed measures which layers to convert, and times; the others convert the same layers.
    """
    done = [row for row in read_lines(path) if row["network"] == network.name]
    layers = next((row["layers"] for row in done if "layers" in row), None)
    data = Data.load(network.dataset)
    torch.manual_seed(seed)
    dense = network.build(data.X_train.shape[1], data.classes)
    fit(dense, data, network.epochs, seed)
    for layer in dense.modules():  # weight_norm, which pruning cannot act on, has done its work
        if isinstance(layer, nn.Conv1d) and is_parametrized(layer, "weight"):
            remove_parametrizations(layer, "weight")
    row: dict[str, Any] = {
        "dataset": network.dataset,
        "epochs": network.epochs,
        "shape": list(data.X_train[:BATCH].shape),
        "parameters": sum(p.numel() for p in dense.parameters()),
        "before": {"dense": accuracy(dense, data)},
    }
    masked = deepcopy_model(dense)
    for layer in masked.modules():
        if isinstance(layer, nn.Conv1d):
            prune.l1_unstructured(layer, "weight", amount=PRUNED)
    row["before"]["pruned"] = accuracy(masked, data)
    if layers is None:
        converted, report = sc.convert(masked, example_input=data.X_train[:BATCH], rounds=12)
        row["layers"] = [
            {"name": layer.name, "sparse": layer.sparse, "reason": layer.reason}
            for layer in report.layers
        ]
    else:
        choice = [layer["name"] for layer in layers if layer["sparse"]]
        converted, _ = sc.convert(masked, layers=choice)
    models = dict(zip(WAYS, (dense, masked, converted), strict=True))
    if layers is None:
        row["times"] = times({way: deepcopy_model(model) for way, model in models.items()}, data)
    row["after"] = {}
    for way, model in (models | {"moving": deepcopy_model(converted)}).items():
        fit(model, data, network.epochs, seed + 1, moving=way == "moving")
        row["after"][way] = accuracy(model, data)
    return rounded(row | {"package": f"{network.package} {version(network.package)}"})


def fit(model: nn.Module, data: Data, epochs: int, seed: int, *, moving: bool = False) -> None:
    """Train with Adam; patterns of sparse layers may change, at most ten times."""
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=LR)
    batches = len(data.X_train) // BATCH  # without what is left over, too little for BatchNorm
    steps = epochs * batches
    schedulers: list[Any] = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)]
    if moving and any(isinstance(m, sc.SparseConv1d) for m in model.modules()):
        schedulers.append(sc.DSTScheduler(
            model, optimizer, update_every=max(1, steps // 10), end_step=max(1, steps * 3 // 4),
            prune_fraction=0.3, grow="gradient",
        ))  # fmt: skip

    step = training_step(model, optimizer)
    for _ in range(epochs):
        for part in torch.randperm(len(data.X_train)).split(BATCH)[:batches]:
            step(data.X_train[part], data.y_train[part])
            for scheduler in schedulers:
                scheduler.step()


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Callable[[Tensor, Tensor], None]:
    # fused: Adam's fastest form for either side, and the one that train() uses.
    optimizer = optimizer or torch.optim.Adam(model.train().parameters(), lr=3e-4, fused=True)

    def step(X: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(X), y).backward()
        optimizer.step()

    return step


def accuracy(model: nn.Module, data: Data) -> float:
    model.eval()  # also for the conversion that follows
    return evaluate(model, data.X_test, data.y_test, 64)["test_accuracy"]


def times(models: Mapping[str, nn.Module], data: Data) -> dict[str, Any]:
    X, y = data.X_train[:BATCH], data.y_train[:BATCH]
    inference = torch.inference_mode()(nn.Module.__call__)
    makes: dict[str, Callable[[nn.Module], Callable[[], object]]] = {
        "step": lambda model: partial(training_step(model), X, y),
        "inference": lambda model: partial(inference, model.eval(), X),
    }
    found: dict[str, Any] = {}
    for what, make in makes.items():
        calls = {way: make(model) for way, model in models.items()}
        found[what] = summary(interleave(calls, rounds=ROUNDS), "converted")
    return found


def summary(times: Times, base: str) -> dict[str, Any]:
    """Return milliseconds, and ratios to the times of ``base``, each with its interval."""
    return {
        "ms": {way: list(milliseconds(seconds)) for way, seconds in times.items()},
        "ratio": {way: list(ratio(times, way, base)) for way in times if way != base},
    }


def section(path: Path = RESULTS) -> str:
    """Tabulate the first seed's times and all seeds' accuracies in Markdown."""
    done, rows = read_lines(path), []
    for name in dict.fromkeys(row["network"] for row in done):
        runs = [row for row in done if row["network"] == name]
        (timed,) = (row for row in runs if "times" in row)
        sparse = sum(layer["sparse"] for layer in timed["layers"])
        ratios = [
            str(Estimate(*timed["times"][what]["ratio"][way]))
            for what in ("step", "inference")
            for way in WAYS[:2]
        ]
        scores = [spread([100 * row["after"][way] for row in runs], 1) for way in (*WAYS, "moving")]
        size = " x ".join(map(str, timed["shape"]))
        layers = f"{sparse} of {len(timed['layers'])}"
        network = f"{name} ({timed['package']})"
        epochs = f"2 x {timed['epochs']}"
        rows.append((network, timed["dataset"], size, layers, epochs, *ratios, *scores))
    header = (
        "network", "data set", "batch", "layers made sparse", "epochs", "step: dense / converted",
        "masked / converted", "inference: dense / converted", "masked / converted",
        "accuracy dense", "masked", "converted", "converted, RigL",
    )  # fmt: skip
    about = done[-1]["machine"]
    lines = [Table(header, rows, text_columns=4).markdown(), ""]
    lines.append(
        f"{about['cpu']}, 1 thread, {about['isa']}, torch {about['torch']}, {about['date']}; 90 % "
        "of the weights of every convolution were pruned by magnitude. Ratios above 1: the "
        f"converted network is faster; medians with 95 % intervals of {ROUNDS} interleaved "
        f"pairs, while other processes were running on the same {about['cores']} cores. Accuracies "
        "in percent on the test set: mean ± standard deviation (seeds), after fine-tuning for the "
        "same (small) number of epochs as training."
    )
    for row in done:
        layers = row.get("layers", ())
        reasons = Counter(layer["reason"] for layer in layers if not layer["sparse"])
        for reason, count in reasons.items():
            lines.append(f"- {row['network']}: {count} of {len(layers)} left dense: {reason}")
    for row in (row for row in done if "earlier" in row):  # its result led to other settings
        tried = row["earlier"]
        scores = ", ".join(f"{way} {100 * score:.1f}" for way, score in tried["after"].items())
        lines.append(
            f"- tried earlier: {row['network']}, seed {row['seed']}, 2 x {tried['epochs']} epochs "
            f"({tried['replaced']} since then): {scores}"
        )
    return "\n".join(lines) + "\n"


def measure(path: Path, archive: Path | None = None) -> None:
    jobs = {
        (network.name, seed): partial(run, network, seed, path)
        for seed, network in product(SEEDS, NETWORKS)
    }
    with threads(1), warnings.catch_warnings(action="ignore"):  # of the packages
        add_missing(path, ("network", "seed"), jobs)
