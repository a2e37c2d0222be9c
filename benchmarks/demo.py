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

import torch

from benchmarks.bench.networks import check_layers
from benchmarks.recording import measurement_context
from benchmarks.studies.published_networks import training_step
from sparseconv import datasets
from sparseconv.conversion import to_dense
from sparseconv.core.files import check_writable
from sparseconv.core.modules import deepcopy_model
from sparseconv.measure import timing
from sparseconv.measure.machine import threads
from sparseconv.measure.page import Section, write_html
from sparseconv.measure.table import Table, with_thousands
from sparseconv.models import DSN
from sparseconv.ops.backends import resolve_backend
from sparseconv.running import evaluate
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe

DATASET = "GunPoint"
REPORT = "report.html"
EPOCHS = 150  # the paper's 1000 would take the dense network ten minutes
ROUNDS = 20  # pairs of times
SPARSE, DENSE = "sparse, in kernel groups", "dense"
NETWORKS: dict[str, dict[str, float]] = {
    SPARSE: {}, "sparse, without groups": {"n_groups": 1}, DENSE: {"sparsity": 0.0},
}  # fmt: skip
ABOUT = (
    "Dense: torch's nn.Conv1d. Training: CPU seconds, including pattern updates. Step: a training "
    "step without an update, median CPU time of interleaved runs. Weights: all parameters. "
    "Multiply-adds: for one series. One seed."
)


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
    """Train and time the networks, print the comparison, and write the report."""
    machine = measurement_context()
    where = f"{machine['cpu']}, 1 thread, kernels for {machine['isa']}, torch {machine['torch']}"
    data, recipe = datasets.load(DATASET), Recipe(epochs=epochs)
    batch = recipe.batch_size_for(len(data.X_train))
    task = (
        f"{len(data.X_train)} training and {len(data.X_test)} test series of {data.n_timepoints} "
        f"time steps; every network: {epochs} epochs in batches of {batch}"
    )
    print(f"Dynamic Sparse Network on {DATASET}\n{where}\n{task}\n")
    X, y = torch.as_tensor(data.X_train[:batch]), torch.as_tensor(data.y_train[:batch])
    rows, steps, costs = {}, {}, {}
    for number, (name, options) in enumerate(NETWORKS.items(), 1):
        print(f"{number}/{len(NETWORKS)}  training: {name}", flush=True)
        torch.manual_seed(0)
        network = DSN(data.n_channels, len(data.classes), backend="cpp", **options)
        model = to_dense(network) if name == DENSE else network
        result = train(model, data.X_train, data.y_train, recipe)
        check_layers(model, batch, data.n_timepoints)  # a wrong kernel gets no accuracy
        tests = evaluate(model, torch.as_tensor(data.X_test), torch.as_tensor(data.y_test), 64)
        costs[name] = network.cost(data.n_timepoints)
        steps[name] = partial(training_step(deepcopy_model(model)), X, y)
        rows[name] = {
            "network": name,
            "accuracy %": f"{100 * tests['test_accuracy']:.1f}",
            "training s": f"{sum(row['cpu_seconds'] for row in result.history):.1f}",
            "weights": with_thousands(costs[name].params),
            "multiply-adds": with_thousands(costs[name].macs_executed),
        }
    times = timing.interleave(steps, rounds=ROUNDS, clock=time.process_time)
    for name, row in rows.items():
        row["step ms"] = f"{timing.milliseconds(times[name]).median:.1f}"
        row["dense step / this"] = str(timing.ratio(times, DENSE, name)) if name != DENSE else ""
    table = Table.of(rows.values(), ["network"])
    end = (
        f"With {100 * costs[SPARSE].params / costs[DENSE].params:.0f} % of the weights, "
        f"{rows[SPARSE]['accuracy %']} % of the test series were classified correctly, against "
        f"{rows[DENSE]['accuracy %']} % by the dense network, whose training step took "
        f"{rows[SPARSE]['dense step / this']} times as long."
    )
    print(f"\n{table}\n\n{end}")
    return write_html(
        out / REPORT,
        f"Dynamic Sparse Network on {DATASET}: sparse against dense",
        [Section("What was gained and lost", end, table, caption=ABOUT)],
        subtitle=f"{where}, {machine['date']}; {task}",
    )


if __name__ == "__main__":
    raise SystemExit(main())
