"""``python -m benchmarks.demo``: train sparse and dense networks on GunPoint, and compare them.

Prints accuracy, times, weights and multiply-adds after the same number of epochs, and writes them
to a self-contained HTML page.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from benchmarks.bench.networks import check_layers
from benchmarks.recording import measurement_context
from benchmarks.studies.published_networks import training_step
from sparseconv import datasets
from sparseconv.conversion import to_dense
from sparseconv.core.files import check_writable
from sparseconv.measure import timing
from sparseconv.measure.machine import threads
from sparseconv.measure.page import Section, write_html
from sparseconv.measure.table import Table, with_thousands
from sparseconv.models import DSN
from sparseconv.models.dsn import DSNCost
from sparseconv.nn.modules import deepcopy_model
from sparseconv.ops.backends import resolve_backend
from sparseconv.running import predict_log_proba
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe

DATASET = "GunPoint"
REPORT = "report.html"
EPOCHS = 150  # the paper's 1000 would take the dense network ten minutes
ROUNDS = 20  # pairs of times
SPARSE, DENSE = "sparse, in kernel groups", "dense"
NETWORKS = {SPARSE: {}, "sparse, without groups": {"n_groups": 1}, DENSE: {"sparsity": 0.0}}
ABOUT = (
    "Dense: torch's nn.Conv1d. Training: CPU seconds, including pattern updates. Step: a training "
    "step without an update, median CPU time of interleaved runs. Weights: all parameters. "
    "Multiply-adds: for one series. One seed."
)


class Trained(NamedTuple):
    """A trained network, its cost, CPU seconds, and which predictions are correct."""

    model: nn.Module
    cost: DSNCost
    seconds: float
    right: Tensor

    @property
    def accuracy(self) -> float:
        return 100 * self.right.double().mean().item()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results")
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, help="number of epochs for each network"
    )
    arguments = parser.parse_args(argv)
    try:
        resolve_backend("cpp", torch.device("cpu"))  # the demo shows the C++ kernels at work
        check_writable(arguments.out / REPORT)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    with threads(1):  # batches of 5 gain little from a second one
        page = run(arguments.epochs, arguments.out)
    print(f"Report: {page.resolve()}")
    return 0


def run(epochs: int, out: Path) -> Path:
    """Train and time the networks, print the comparison, and write the report.

    Raises:
        WrongResultError: the kernels disagree with float64.
    """
    machine = measurement_context()
    isa = machine["cpp"].removeprefix("available ").strip("()")
    where = f"{machine['cpu']}, 1 thread, kernels for {isa}, torch {machine['torch']}"
    data, recipe = datasets.load(DATASET), Recipe(epochs=epochs)
    batch = recipe.batch_size_for(len(data.X_train))
    task = (
        f"{len(data.X_train)} training and {len(data.X_test)} test series of {data.n_timepoints} "
        f"time steps; every network: {epochs} epochs in batches of {batch}"
    )
    print(f"Dynamic Sparse Network on {DATASET}\n{where}\n{task}\n")
    trained = {}
    for number, (name, options) in enumerate(NETWORKS.items(), 1):
        print(f"{number}/{len(NETWORKS)}  training: {name}", flush=True)
        trained[name] = fit(options, data, recipe)
    X, y = torch.as_tensor(data.X_train[:batch]), torch.as_tensor(data.y_train[:batch])
    steps = {
        name: partial(training_step(deepcopy_model(network.model)), X, y)
        for name, network in trained.items()
    }
    times = timing.interleave(steps, rounds=ROUNDS, clock=time.process_time)
    table = tabulate(trained, times)
    ratio = timing.ratio(times, DENSE, SPARSE)
    end = conclusion(trained[SPARSE], trained[DENSE], ratio)
    print(f"\n{table}\n\n{end}")
    return write_html(
        out / REPORT,
        f"Dynamic Sparse Network on {DATASET}: sparse against dense",
        [Section("What was gained and lost", end, table, caption=ABOUT)],
        subtitle=f"{where}, {machine['date']}; {task}",
    )


def fit(options: dict[str, float], data: datasets.Dataset, recipe: Recipe) -> Trained:
    """Train a DSN with these options; a dense one has torch's layers."""
    torch.manual_seed(0)
    network = DSN(data.n_channels, len(data.classes), backend="cpp", **options)
    model = network if options.get("sparsity") != 0 else to_dense(network)
    result = train(model, data.X_train, data.y_train, recipe)
    if model is network:  # a wrong kernel must not get as far as an accuracy
        check_layers(network, recipe.batch_size_for(len(data.X_train)), data.n_timepoints)
    predicted = predict_log_proba(model, data.X_test).argmax(1)
    return Trained(
        model,
        network.cost(data.n_timepoints),
        sum(row["cpu_seconds"] for row in result.history),
        predicted == torch.as_tensor(data.y_test),
    )


def tabulate(trained: dict[str, Trained], times: timing.Times) -> Table:
    """Make one row per network."""
    rows = [
        {
            "network": name,
            "accuracy %": f"{network.accuracy:.1f}",
            "training s": f"{network.seconds:.1f}",
            "step ms": f"{timing.milliseconds(times[name]).median:.1f}",
            "dense step / this": str(timing.ratio(times, DENSE, name)) if name != DENSE else "",
            "weights": with_thousands(network.cost.params),
            "multiply-adds": with_thousands(network.cost.macs_executed),
        }
        for name, network in trained.items()
    ]
    return Table.of(rows, ["network"])


def conclusion(sparse: Trained, dense: Trained, ratio: timing.Estimate) -> str:
    """Summarise what the sparse network gained and lost; ``ratio`` compares the steps.

    McNemar's test decides whether the accuracies differ: of the series that only one network
    classifies correctly, each of two equally good networks is expected to get half.
    """
    share = sparse.cost.params / dense.cost.params
    if ratio.low <= 1 <= ratio.high:
        speed = f"not clearly faster or slower than dense ({ratio})"
    elif ratio.median > 1:
        speed = f"{ratio.median:.1f}x as fast as dense [{ratio.low:.1f}, {ratio.high:.1f}]"
    else:
        speed = f"slower than dense: it took {1 / ratio.median:.1f}x the time"
    mine, theirs = (int((a.right & ~b.right).sum()) for a, b in ((sparse, dense), (dense, sparse)))
    points = sparse.accuracy - dense.accuracy
    way = "higher" if points > 0 else "lower"
    change = f"{abs(points):.1f} points {way}" if points else "equal"
    p = binomtest(mine, mine + theirs).pvalue if mine + theirs else 1.0
    shown = f"{'significant' if p < 0.05 else 'not significant'}, p = {p:.2g}"
    return (
        f"With {share:.0%} of the weights, a training step was {speed}, and accuracy was {change} "
        f"({sparse.accuracy:.1f} against {dense.accuracy:.1f} % of {len(sparse.right)} series: "
        f"{shown})."
    )


if __name__ == "__main__":
    raise SystemExit(main())
