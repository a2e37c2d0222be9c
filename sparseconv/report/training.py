"""What a training run leaves for a person to read: a summary and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseconv.core.files import write_whole
from sparseconv.measure.table import Table, with_thousands
from sparseconv.report import figures

if TYPE_CHECKING:
    from sparseconv.models import DSN
    from sparseconv.models.dsn import DSNCost


def write_training_report(
    out: str | Path,
    *,
    dataset_name: str,
    model: DSN,
    history: Sequence[Mapping[str, Any]],
    cost: DSNCost,
    test_accuracy: float,
    config: Mapping[str, Any],
) -> Path:
    """Write ``summary.md`` and its figures into the results folder of a run; returns its path.

    ``history`` is that of a ``TrainingResult``, ``config`` every setting of the run, by name.
    """
    out = Path(out)
    folder = out / "figures"
    layers = model.sparse_layers()
    profiles = [figures.group_profiles(layer) for layer in layers]
    captions = {
        figures.learning_curve(history, folder / "learning_curve.png"): "Loss and accuracy",
        figures.receptive_fields(
            {"this network": figures.kernels_by_size(model)}, folder / "receptive_fields.png"
        ): "Effective receptive fields of kernels and of paths through the layers",
        figures.group_weights(
            profiles, layers[0].regions, folder / "group_weights.png"
        ): "Magnitude of the active weights by kernel group and tap",
    }
    kept = figures.best_epoch(history)
    facts = Table(
        ("", "value"),
        [
            ("test accuracy", f"{test_accuracy:.4f}"),
            ("least training loss", f"{kept['train_loss']:.6f} in epoch {kept['epoch']}"),
            ("epochs", f"{len(history)}"),
            ("pattern updates", f"{sum(bool(row['updated']) for row in history)}"),
            ("time in training", f"{sum(float(row['seconds']) for row in history):.0f} s"),
        ],
    )
    counts = (
        ("parameters", cost.params, cost.params_dense),
        ("multiply-accumulates executed", cost.macs_executed, cost.macs_dense),
        ("FLOPs as the paper counts", cost.flops_paper, cost.flops_paper_dense),
    )
    costs = Table(
        ("per series", "this network", "every tap active", "share"),
        [
            (name, with_thousands(ours), with_thousands(dense), f"{ours / dense:.1%}")
            for name, ours, dense in counts
        ],
    )
    patterns = Table(
        ("layer", "channels x taps", "active weights", "of", "density"),
        [
            (
                f"{i}",
                f"{p.shape[1]} → {p.shape[0]} x {p.shape[2]}",
                with_thousands(p.nnz),
                with_thousands(p.numel),
                f"{p.density:.2%}",
            )
            for i, p in enumerate((layer.pattern for layer in layers), start=1)
        ],
        text_columns=2,
    )
    settings = Table(
        ("setting", "value"), [(key, str(value)) for key, value in config.items()], text_columns=2
    )
    parts = [f"# DSN on {dataset_name}", facts.markdown(), "## Cost", costs.markdown()]
    parts += ["## Sparse layers", patterns.markdown(), "## Figures"]
    parts += [f"![{text}]({path.relative_to(out).as_posix()})" for path, text in captions.items()]
    parts += ["## Settings", settings.markdown()]
    summary = out / "summary.md"
    write_whole(summary, "\n\n".join(parts) + "\n")
    return summary
