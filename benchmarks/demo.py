"""``python -m benchmarks.demo``: train a DSN on GunPoint sparsely and show what that saves.

Prints the accuracy, and the times of every layer and of the whole training step, sparse and dense.
All of it is on one self-contained HTML page.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.plots import draw_savings
from sparseconv import datasets
from sparseconv.bench import tables
from sparseconv.bench.network import compare
from sparseconv.core.files import check_writable
from sparseconv.measure import timing
from sparseconv.measure.machine import measurement_context, threads
from sparseconv.measure.page import Section, write_html
from sparseconv.measure.records import INFERENCE, TRAINING
from sparseconv.models import DSN
from sparseconv.ops.backends import resolve_backend
from sparseconv.profiling import profile
from sparseconv.report import figures
from sparseconv.training.evaluation import evaluate
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe

DATASET = "GunPoint"
REPORT = "report.html"
EPOCHS = 1000  # the paper's: about two minutes


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
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
    """Train a network, time its layers and steps, print how it goes, and write the report.

    Raises:
        WrongResultError: the kernels compute something else than float64 does.
    """
    machine = measurement_context()
    isa = machine["cpp"].removeprefix("available ").strip("()")
    where = f"{machine['cpu']}, 1 thread, kernels for {isa}, torch {machine['torch']}"
    print(f"Weight-sparse convolution on {where}\n")
    data, recipe = datasets.load(DATASET), Recipe(epochs=epochs)
    batch = recipe.batch_size_for(len(data.X_train))
    print(f"1/3  Dynamic Sparse Network on {DATASET}: {len(data.X_train)} training and "
          f"{len(data.X_test)} test series of {data.n_timepoints} samples, {epochs} epochs, "
          f"batches of {batch}")  # fmt: skip
    torch.manual_seed(0)
    model = DSN(data.n_channels, len(data.classes), backend="cpp")
    result = train(model, data.X_train, data.y_train, recipe)
    # A wrong kernel must not get as far as an accuracy.
    compare.check_layers(model, batch, data.n_timepoints)
    X_test, y_test = torch.as_tensor(data.X_test), torch.as_tensor(data.y_test)
    accuracy = evaluate(model, X_test, y_test, 64)["test_accuracy"]
    seconds = sum(row["seconds"] for row in result.history)
    print(f"     test accuracy {accuracy:.4f}, trained in {seconds:.0f} s\n")

    print("2/3  Every layer, and the same layer dense")
    X, y = torch.as_tensor(data.X_train[:batch]), torch.as_tensor(data.y_train[:batch])
    layers = profile(model.train(), X)
    print(layers, end="\n\n")

    print("3/3  The whole training step, and the masked-dense step")
    steps = []
    for count in sorted({1, min(2, os.cpu_count() or 1)}):
        with threads(count):
            steps += [compare.training_row(mode, model, X, y) for mode in ("train", "update")]
    print(tables.network(steps).markdown(), end="\n\n")

    ratio, cost = timing.Estimate(*steps[0]["ratio"]["masked_dense"]), model.cost(data.n_timepoints)
    figure = figures.new_figure("Time saved against FLOPs saved", 6.4, 5.2)
    points = {
        f"layers, {which}": [
            (layer.flops[which].ratio, layer.times[which].ratio.median)
            for layer in layers.layers
            if which in layer.times
        ]
        for which in (INFERENCE, TRAINING)
    }
    points["whole training step"] = [(cost.macs_dense / cost.macs_executed, ratio.median)]
    draw_savings(ax := figure.subplots(), points)
    figures.legend_above(figure, ax)
    sections = [
        Section(
            "How it learned",
            "The paper's recipe (Adam, cosine learning rate, pattern updates every 5 epochs) for "
            f"{epochs} epochs; the network of the epoch with least training loss is kept.",
            figure=figures.learning_curve(result.history, out / "figures" / "learning_curve.png"),
            caption="Training loss and accuracy: thin, every epoch; strong, their running "
            "median. Ticks at the bottom mark the epochs "
            "after which weights of least magnitude were pruned and others grown. "
            f"{result.itop_rate or 0:.1%} of all weights were active at some time.",
        ),
        Section(
            "Every layer",
            "The dense layer multiplies the same weights, zeros included; one thread.",
            table=layers.table(),
            caption="Ratios are medians of interleaved pairs, with 95 % intervals. "
            "Training: gradients of the weights and, except in the first layer, of the input.",
        ),
        Section(
            "The whole training step",
            "zero_grad, forward, loss, backward, Adam, masks: this library, and dense weights "
            "multiplied by masks after every step, as dynamic sparse training is usually run.",
            table=tables.network(steps),
            caption="An updating step also prunes and grows.",
        ),
        Section(
            "Time saved against FLOPs saved",
            figure=figures.save(figure, out / "figures" / "time_vs_flops.png"),
            caption="Each point compares a part of the network with its dense twin; above the "
            "dashed line more time was saved than arithmetic.",
        ),
    ]
    return write_html(
        out / REPORT,
        f"A Dynamic Sparse Network on {DATASET}",
        sections,
        subtitle=f"{where}, {machine['date']}",
        highlights=[
            (f"{accuracy:.1%}", "test accuracy"),
            (f"{ratio.median:.1f}x", f"faster training step than masked dense "
             f"[{ratio.low:.1f}, {ratio.high:.1f}]"),
            (f"{cost.params / cost.params_dense:.0%}", "of the dense network's parameters, "
             "gradients and optimizer state"),
            (f"{seconds:.0f} s", f"for {epochs} epochs of training"),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
