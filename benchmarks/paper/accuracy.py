"""``python -m benchmarks.paper.accuracy``: the full recipe on the bundled data sets.

Trains a DSN per data set and seed, with sparse kernels and, for the sets named by
``--masked-dense``, also as masked dense weights. Every finished run appends one JSON line to
``--out``; runs that are in the file already are skipped, so the command can be stopped and
repeated. At the end it prints the means beside published accuracies (published.csv).
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparseconv import datasets
from sparseconv.bench.network.masked import MaskedDST, masked_copy
from sparseconv.measure.machine import measurement_context, threads
from sparseconv.measure.table import Table
from sparseconv.models import DSN
from sparseconv.training.evaluation import predict_log_proba
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe

# The paper's settings by archive. All else is the default of DSN and Recipe.
UCR_85: dict[str, Any] = {}
UCR_2018: dict[str, Any] = {"padding": "centred-zeros"}
UEA: dict[str, Any] = {"sparsity": 0.9, "nf": 59}
SETTINGS = {
    "GunPoint": UCR_85,
    "ItalyPowerDemand": UCR_85,
    "ArrowHead": UCR_85,
    "OSULeaf": UCR_85,
    "ACSF1": UCR_2018,
    "BasicMotions": UEA,
    "JapaneseVowels": UEA,
}
PUBLISHED = Path(__file__).with_name("published.csv")
RESULTS = Path(__file__).with_name("results") / "accuracy.jsonl"
MASKED_DST = ("prune_fraction", "prune_floor", "seed")  # what it needs of a recipe
KEY = ("dataset", "kind", "seed", "epochs")  # what makes a run the same run


def run(
    dataset: str, kind: str, seed: int, epochs: int, *, progress: bool = True
) -> dict[str, Any]:
    """Train and test once; ``kind`` is ``"sparse"`` or ``"masked dense"``."""
    data = datasets.load(dataset)
    torch.manual_seed(seed)
    sparse = DSN(data.n_channels, len(data.classes), **SETTINGS[dataset])
    nnz = sum(layer.pattern.nnz for layer in sparse.sparse_layers())
    model = sparse if kind == "sparse" else masked_copy(sparse)
    recipe = Recipe(epochs=epochs, seed=seed)

    constants = {name: getattr(recipe, name) for name in MASKED_DST}

    def masked_dst(model: Any, optimizer: Any, every: int, end: int, decay: int) -> MaskedDST:
        times = {"update_every": every, "end_step": end, "decay_steps": decay}
        return MaskedDST(model, optimizer, **times, **constants)

    result = train(
        model,
        data.X_train,
        data.y_train,
        recipe,
        progress=progress,
        scheduler_factory=None if kind == "sparse" else masked_dst,
    )
    predicted = predict_log_proba(model, torch.as_tensor(data.X_test)).argmax(1)
    correct = predicted == torch.as_tensor(data.y_test)
    return {
        **dict(zip(KEY, (dataset, kind, seed, epochs), strict=True)),
        "accuracy": correct.double().mean().item(),
        "best_epoch": result.best_epoch,
        "best_loss": result.best_loss,
        "itop_rate": result.itop_rate,
        "active_weights": nnz,
        "train_seconds": sum(row["seconds"] for row in result.history),
        "threads": torch.get_num_threads(),
        "machine": measurement_context(),
    }


def finished(path: Path) -> list[dict[str, Any]]:
    """The runs in a results file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def table(runs: Iterable[Mapping[str, Any]]) -> Table:
    """Mean and standard deviation over seeds, beside the published figures, in percent."""
    by_set: dict[tuple[str, int], dict[str, list[float]]] = {}
    for each in runs:
        kinds = by_set.setdefault((each["dataset"], each["epochs"]), {})
        kinds.setdefault(each["kind"], []).append(100 * each["accuracy"])
    with PUBLISHED.open(newline="") as file:
        published = {
            (row["dataset"], row["model"]): float(row["accuracy_percent"])
            for row in csv.DictReader(file)
        }
    peers = ("ResNet", "InceptionTime", "OS-CNN")
    return Table(
        ("data set", "epochs", "sparse", "masked dense", *peers),
        [
            (
                dataset,
                str(epochs),
                *(spread(kinds.get(kind, [])) for kind in ("sparse", "masked dense")),
                *(f"{published[dataset, peer]:.2f}" for peer in peers),
            )
            for (dataset, epochs), kinds in by_set.items()
        ],
    )


def spread(percent: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation (how many), ``"-"`` of none."""
    if not percent:
        return "-"
    deviation = f" ± {statistics.stdev(percent):.{digits}f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.{digits}f}{deviation} ({len(percent)})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper.accuracy", description=__doc__
    )
    sets = list(SETTINGS)
    parser.add_argument("--datasets", nargs="*", choices=sets, default=sets)
    parser.add_argument("--masked-dense", nargs="*", choices=sets, default=[], metavar="DATASET")
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    wanted = [
        (dataset, kind, seed, arguments.epochs)
        for seed in arguments.seeds
        for kind, names in (
            ("sparse", arguments.datasets),
            ("masked dense", arguments.masked_dense),
        )
        for dataset in names
    ]
    done = {tuple(each[key] for key in KEY) for each in finished(arguments.out)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with threads(arguments.threads):
        for key in wanted:
            if key in done:
                continue
            print(*key)
            result = run(*key, progress=sys.stderr.isatty())
            with arguments.out.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"accuracy {result['accuracy']:.4f} in {result['train_seconds']:.0f} s")
    print(table(finished(arguments.out)).markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
