"""``python -m benchmarks.demo``: train a DSN on GunPoint sparsely and show what that saves.

Prints and saves the accuracy, the times of every layer and of the whole training step, sparse and
dense, and four figures. All of it is on one self-contained HTML page.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from sparseconv.measure.table import Table, threads_text, with_thousands
from sparseconv.models import DSN
from sparseconv.ops.backends import resolve_backend
from sparseconv.profiling import Profile, profile
from sparseconv.report import figures
from sparseconv.training.evaluation import predict_log_proba
from sparseconv.training.loop import TrainingResult, train
from sparseconv.training.recipe import Recipe

DATASET = "GunPoint"
REPORT = "report.html"
# The paper's 1 000 epochs, and enough to see what groups do: about two minutes together.
EPOCHS, EPOCHS_WITHOUT_GROUPS = 1000, 150


class Trained(NamedTuple):
    """A network with its training, and its accuracy on the test set."""

    model: DSN
    result: TrainingResult
    accuracy: float

    @property
    def epochs(self) -> int:
        return len(self.result.history)

    @property
    def seconds(self) -> float:
        return float(sum(row["seconds"] for row in self.result.history))


class Demo(NamedTuple):
    """What was trained and timed."""

    machine: dict[str, Any]  # as in ``measurement_context``, and the number of ``threads``
    data: datasets.Dataset
    batch: int  # series in a batch
    grouped: Trained  # the network with kernel groups
    ungrouped: Trained  # and without
    layers: Profile  # of the network with groups, sparse and dense
    steps: list[dict[str, Any]]  # its training steps, sparse and masked-dense

    @property
    def step_ratio(self) -> timing.Estimate:
        """How many times faster than masked dense a training step is, on the demo's threads."""
        wanted = self.machine["threads"], "train"
        step = next(row for row in self.steps if (row["threads"], row["mode"]) == wanted)
        return timing.Estimate(*step["ratio"]["masked_dense"])


def train_and_test(data: datasets.Dataset, epochs: int, seed: int, **options: Any) -> Trained:
    """Train one network with the paper's recipe and test it."""
    torch.manual_seed(seed)
    model = DSN(data.n_channels, len(data.classes), backend="cpp", **options)
    result = train(model, data.X_train, data.y_train, Recipe(epochs=epochs, seed=seed))
    predicted = predict_log_proba(model, torch.as_tensor(data.X_test)).argmax(1)
    correct = predicted == torch.as_tensor(data.y_test)
    return Trained(model, result, correct.double().mean().item())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--epochs-without-groups", type=int, default=EPOCHS_WITHOUT_GROUPS)
    # Batches of 5 gain little from a second thread, and two threads wait for each other where
    # other programs run too.
    parser.add_argument("--threads", type=int, default=1, help="in training and layers")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        resolve_backend("cpp", torch.device("cpu"))  # the demo shows the C++ kernels at work
        check_writable(arguments.out / REPORT)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with threads(arguments.threads):
        demo = measured(arguments.epochs, arguments.epochs_without_groups, arguments.seed)
    page = write_page(demo, arguments.out)
    results = {
        "machine": demo.machine, "accuracy": demo.grouped.accuracy,
        "train_seconds": demo.grouped.seconds, "layers": demo.layers.to_dict(),
        "steps": demo.steps, "history": demo.grouped.result.history,
    }  # fmt: skip
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
    print(f"Report: {page.resolve()}")
    return 0


def measured(epochs: int, epochs_without: int, seed: int) -> Demo:
    """Train both networks, with kernel groups and without, and time the first; print how it goes.

    Raises:
        WrongResultError: the kernels compute something else than float64 does.
    """
    own_threads = torch.get_num_threads()
    machine = measurement_context() | {"threads": own_threads}
    print(f"Weight-sparse convolution on {_where(machine)}, torch {machine['torch']}\n")
    data = datasets.load(DATASET)
    batch = Recipe().batch_size_for(len(data.X_train))
    print(f"1/4  Dynamic Sparse Network on {DATASET}: {len(data.X_train)} training and "
          f"{len(data.X_test)} test series of {data.n_timepoints} samples, {epochs} epochs, "
          f"batches of {batch}")  # fmt: skip
    # A wrong kernel must not get as far as an accuracy.
    compare.check_layers(DSN(data.n_channels, 2, init="random"), batch, data.n_timepoints)
    grouped = train_and_test(data, epochs, seed)
    print(f"     test accuracy {grouped.accuracy:.4f}, trained in {grouped.seconds:.0f} s\n")

    print(f"2/4  The same without kernel groups, {epochs_without} epochs, for comparison")
    ungrouped = train_and_test(data, epochs_without, seed, n_groups=1)
    print(f"     test accuracy {ungrouped.accuracy:.4f}\n")

    print("3/4  Every layer beside the same layer dense")
    model = grouped.model
    compare.check_layers(model, batch, data.n_timepoints)
    X, y = torch.as_tensor(data.X_train[:batch]), torch.as_tensor(data.y_train[:batch])
    layers = profile(model.train(), X)
    print(layers, end="\n\n")

    print("4/4  The whole training step beside the masked-dense step")
    steps: list[dict[str, Any]] = []
    for step_count in sorted({own_threads, min(2, os.cpu_count() or 1)}):
        with threads(step_count):
            steps += [compare.training_row(mode, model, X, y) for mode in ("train", "update")]
    print(tables.network(steps).markdown(), end="\n\n")
    return Demo(machine, data, batch, grouped, ungrouped, layers, steps)


def write_page(demo: Demo, out: Path) -> Path:
    """Draw the figures and write ``report.html`` into the folder ``out``."""
    folder, threads_used = out / "figures", demo.machine["threads"]
    (model, result, accuracy), ungrouped = demo.grouped, demo.ungrouped
    samples, batch = demo.data.n_timepoints, demo.batch
    cost, ratio = model.cost(samples), demo.step_ratio
    networks = {
        f"with kernel groups ({with_thousands(_active(model))} active)": model,
        f"without ({with_thousands(_active(ungrouped.model))} active)": ungrouped.model,
    }
    curve = figures.learning_curve(result.history, folder / "learning_curve.png")
    kernels = {label: figures.kernels_by_size(network) for label, network in networks.items()}
    fields = figures.receptive_fields(kernels, folder / "receptive_fields.png")
    layers = model.sparse_layers()
    profiles = [figures.group_profiles(layer) for layer in layers]
    weights = figures.group_weights(profiles, layers[0].regions, folder / "group_weights.png")
    figure = figures.new_figure("Time saved against FLOPs saved", 6.4, 5.2)
    points = {
        f"layers, {which}": [
            (layer.flops[which].ratio, layer.times[which].ratio.median)
            for layer in demo.layers.layers
            if which in layer.times
        ]
        for which in (INFERENCE, TRAINING)
    }
    points["whole training step"] = [(cost.macs_dense / cost.macs_executed, ratio.median)]
    draw_savings(ax := figure.subplots(), points)
    figures.legend_above(figure, ax)
    saved = figures.save(figure, folder / "time_vs_flops.png")
    costs = Table(
        ("", "this network", "every tap active"),
        [
            ("parameters", with_thousands(cost.params), with_thousands(cost.params_dense)),
            ("multiply-accumulates executed per series, forward",
             with_thousands(cost.macs_executed), with_thousands(cost.macs_dense)),
            ("memory of parameters, gradients and Adam's moments",
             f"{16e-6 * cost.params:.1f} MB", f"{16e-6 * cost.params_dense:.1f} MB"),
        ],
    )  # fmt: skip
    sections = [
        Section(
            "How it learned",
            "The paper's recipe (Adam, cosine learning rate, pattern updates every 5 epochs) for "
            f"{demo.grouped.epochs} epochs; the network of the epoch with least training loss is "
            "kept.",
            figure=curve,
            caption="Training loss and accuracy: thin, every epoch; strong, their running "
            "median. Ticks at the bottom mark the epochs "
            "after which weights of least magnitude were pruned and others grown. "
            f"{result.itop_rate or 0:.1%} of all weights were active at some time.",
        ),
        Section("What it costs", table=costs),
        Section(
            "Every layer",
            f"A batch of {batch} series of {samples} samples, {threads_text(threads_used)}. The "
            "dense layer multiplies the same weights, zeros included.",
            table=demo.layers.table(),
            caption="Ratios are medians of interleaved pairs, with 95 % intervals. "
            "Training: gradients of the weights and, but for the first layer, of the input.",
        ),
        Section(
            "The whole training step",
            "zero_grad, forward, loss, backward, Adam, masks: this library beside dense weights "
            "multiplied by masks after every step, as dynamic sparse training is usually run. "
            "Both take turns in one process.",
            table=tables.network(demo.steps),
            caption="An updating step also prunes and grows; the recipe takes one such step in "
            f"{5 * -(-len(demo.data.X_train) // batch)}.",
        ),
        Section(
            "Time saved against FLOPs saved",
            figure=saved,
            caption="Each point compares a part of the network with its dense twin; above the "
            "dashed line more time was saved than arithmetic.",
        ),
        Section(
            "What the kernels see",
            figure=fields,
            caption="Above: effective receptive field of every kernel (last minus first active "
            "tap, plus 1). Below: of every path through the layers so far. Both networks were "
            f"trained with the same recipe, with kernel groups for {demo.grouped.epochs} epochs "
            f"(accuracy {accuracy:.4f}), without for {ungrouped.epochs} "
            f"({ungrouped.accuracy:.4f}). After Figure 6 of the paper.",
        ),
        Section(
            "Where the weights are",
            figure=weights,
            caption="Sum of the magnitudes of a kernel group's active weights at each tap, divided "
            "by the largest of the layer; hatched taps are closed to the group. At the right: the "
            "group's share of the layer's sum of magnitudes. After Figure 8 of the paper.",
        ),
    ]
    machine = demo.machine
    return write_html(
        out / REPORT,
        f"A Dynamic Sparse Network on {DATASET}",
        sections,
        subtitle=f"{_where(machine)}, torch {machine['torch']}, {machine['date']}",
        highlights=[
            (f"{accuracy:.1%}", "test accuracy"),
            (f"{ratio.median:.1f}x", f"faster training step than masked dense "
             f"[{ratio.low:.1f}, {ratio.high:.1f}]"),
            (f"{cost.params / cost.params_dense:.0%}", "of the dense network's parameters, "
             "gradients and optimizer state"),
            (f"{demo.grouped.seconds:.0f} s", f"for {demo.grouped.epochs} epochs of training"),
        ],
    )  # fmt: skip


def _where(machine: Mapping[str, Any]) -> str:
    isa = machine["cpp"].removeprefix("available ").strip("()")
    return f"{machine['cpu']}, {threads_text(machine['threads'])}, kernels for {isa}"


def _active(model: DSN) -> int:
    return sum(layer.pattern.nnz for layer in model.sparse_layers())


if __name__ == "__main__":
    raise SystemExit(main())
