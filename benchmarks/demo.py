"""``python -m benchmarks.demo``: train a DSN on GunPoint sparsely and show what that saves.

Prints and saves the accuracy, the time of every layer and of the whole training step beside the
dense ones, and four figures; ends with one self-contained HTML page.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparseconv import datasets
from sparseconv.bench import tables
from sparseconv.bench.network import compare
from sparseconv.bench.run import WrongResultError, cpp_or_reason
from sparseconv.measure import timing
from sparseconv.measure.machine import measurement_context, threads
from sparseconv.measure.table import Table, threads_text, with_thousands
from sparseconv.models import DSN
from sparseconv.profiling import profile
from sparseconv.profiling.result import PASSES, layer_table
from sparseconv.report import figures
from sparseconv.report.page import Section, write_html
from sparseconv.training.evaluation import predict_log_proba
from sparseconv.training.loop import TrainingResult, train
from sparseconv.training.recipe import Recipe

DATASET = "GunPoint"
# The paper's 1 000 epochs, and enough to see what groups do: about two minutes together.
EPOCHS, EPOCHS_WITHOUT_GROUPS = 1000, 150


def train_and_test(
    data: datasets.Dataset, epochs: int, seed: int, **options: Any
) -> tuple[DSN, TrainingResult, float]:
    """Train one network with the paper's recipe; return it with its result and test accuracy."""
    torch.manual_seed(seed)
    model = DSN(data.n_channels, len(data.classes), backend="cpp", **options)
    result = train(model, data.X_train, data.y_train, Recipe(epochs=epochs, seed=seed))
    predicted = predict_log_proba(model, torch.as_tensor(data.X_test)).argmax(1)
    correct = predicted == torch.as_tensor(data.y_test)
    return model, result, correct.double().mean().item()


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
    if reason := cpp_or_reason():
        print(f"The demo shows the C++ kernels at work, and {reason}", file=sys.stderr)
        return 1
    with threads(arguments.threads):
        try:
            return _demo(arguments)
        except WrongResultError as error:
            print(f"The kernels are wrong on this machine, so nothing is timed: {error}",
                  file=sys.stderr)  # fmt: skip
            return 1


def _demo(arguments: argparse.Namespace) -> int:
    machine = measurement_context()
    count = torch.get_num_threads()
    isa = machine["cpp"].removeprefix("available ").strip("()")
    on_threads = threads_text(count)
    where = f"{machine['cpu']}, {on_threads}, kernels for {isa}"
    print(f"Weight-sparse convolution on {where}, torch {machine['torch']}\n")
    data = datasets.load(DATASET)
    epochs, epochs_without = arguments.epochs, arguments.epochs_without_groups
    batch = Recipe().batch_size_for(len(data.X_train))
    print(f"1/4  Dynamic Sparse Network on {DATASET}: {len(data.X_train)} training and "
          f"{len(data.X_test)} test series of {data.n_timepoints} samples, {epochs} epochs, "
          f"batches of {batch}")  # fmt: skip
    # A wrong kernel must not get as far as an accuracy.
    compare.check_layers(DSN(data.n_channels, 2, init="random"), batch, data.n_timepoints)
    model, result, accuracy = train_and_test(data, epochs, arguments.seed)
    seconds = sum(row["seconds"] for row in result.history)
    print(f"     test accuracy {accuracy:.4f}, trained in {seconds:.0f} s\n")

    print(f"2/4  The same without kernel groups, {epochs_without} epochs, for comparison")
    ungrouped, _, accuracy_without = train_and_test(
        data, epochs_without, arguments.seed, n_groups=1
    )
    print(f"     test accuracy {accuracy_without:.4f}\n")

    print("3/4  Every layer beside the same layer dense")
    compare.check_layers(model, batch, data.n_timepoints)
    X, y = torch.as_tensor(data.X_train[:batch]), torch.as_tensor(data.y_train[:batch])
    layers = profile(model.train(), X)
    print(layers, end="\n\n")

    print("4/4  The whole training step beside the masked-dense step")
    steps: list[dict[str, Any]] = []
    for step_count in sorted({count, min(2, os.cpu_count() or 1)}):
        with threads(step_count):
            steps += [compare.training_row(mode, model, X, y) for mode in ("train", "update")]
    step_table = tables.network(steps)
    print(step_table.markdown(), end="\n\n")

    folder = arguments.out / "figures"
    cost = model.cost(data.n_timepoints)
    networks = {
        f"with kernel groups ({with_thousands(_active(model))} active)": model,
        f"without ({with_thousands(_active(ungrouped))} active)": ungrouped,
    }
    step = next(row for row in steps if (row["threads"], row["mode"]) == (count, "train"))
    ratio = timing.Estimate(*step["ratio"]["masked_dense"])
    curve = figures.learning_curve(result.history, folder / "learning_curve.png")
    fields = figures.receptive_fields(networks, folder / "receptive_fields.png")
    weights = figures.group_weights(model, folder / "group_weights.png")
    points = {
        f"layers, {PASSES[which]}": [
            (timed.dense_flops / timed.flops, timed.ratio.median)
            for layer in layers.layers
            if (timed := layer.passes.get(which))
        ]
        for which in PASSES
    }
    points["whole training step"] = [(cost.macs_dense / cost.macs_executed, ratio.median)]
    saved = figures.time_vs_flops(points, folder / "time_vs_flops.png")
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
            f"The paper's recipe (Adam, cosine learning rate, pattern updates every 5 epochs) for "
            f"{epochs} epochs; the network of the epoch with least training loss is kept.",
            figure=curve,
            caption="Training loss and accuracy: thin, every epoch; strong, their running "
            "median. Ticks at the bottom mark the epochs "
            "after which weights of least magnitude were pruned and others grown. "
            f"{result.itop_rate or 0:.1%} of all weights were active at some time.",
        ),
        Section("What it costs", table=costs),
        Section(
            "Every layer",
            f"A batch of {batch} series of {data.n_timepoints} samples, {on_threads}. The dense "
            "layer multiplies the same weights, zeros included.",
            table=layer_table(layers.layers),
            caption="Ratios are medians of interleaved pairs, with 95 % bootstrap intervals. "
            "Training: gradients of the weights and, but for the first layer, of the input.",
        ),
        Section(
            "The whole training step",
            "zero_grad, forward, loss, backward, Adam, masks: this library beside dense weights "
            "multiplied by masks after every step, as dynamic sparse training is usually run. "
            "Both take turns in one process.",
            table=step_table,
            caption="An updating step also prunes and grows; the recipe takes one such step in "
            f"{5 * -(-len(data.X_train) // batch)}.",
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
            f"trained with the same recipe, with kernel groups for {epochs} epochs (accuracy "
            f"{accuracy:.4f}), without for {epochs_without} ({accuracy_without:.4f}). After "
            "Figure 6 of the paper.",
        ),
        Section(
            "Where the weights are",
            figure=weights,
            caption="Sum of the magnitudes of a kernel group's active weights at each tap, divided "
            "by the largest of the layer; hatched taps are closed to the group. At the right: the "
            "group's share of the layer's sum of magnitudes. After Figure 8 of the paper.",
        ),
    ]
    (arguments.out / "results.json").write_text(
        json.dumps(
            {
                "machine": machine | {"threads": count},
                "accuracy": accuracy,
                "train_seconds": seconds,
                "layers": layers.to_dict(),
                "steps": steps,
                "history": result.history,
            },
            indent=1,
        )
    )
    page = write_html(
        arguments.out / "report.html",
        f"A Dynamic Sparse Network on {DATASET}",
        sections,
        subtitle=f"{where}, torch {machine['torch']}, {machine['date']}",
        highlights=[
            (f"{accuracy:.1%}", "test accuracy"),
            (f"{ratio.median:.1f}x", f"faster training step than masked dense "
             f"[{ratio.low:.1f}, {ratio.high:.1f}]"),
            (f"{cost.params / cost.params_dense:.0%}", "of the dense network's parameters, "
             "gradients and optimizer state"),
            (f"{seconds:.0f} s", f"for {epochs} epochs of training"),
        ],
    )  # fmt: skip
    print(f"Report: {page.resolve()}")
    return 0


def _active(model: DSN) -> int:
    return sum(layer.pattern.nnz for layer in model.sparse_layers())


if __name__ == "__main__":
    raise SystemExit(main())
