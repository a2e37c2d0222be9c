"""Write and read the results folder of a run."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparseconv import datasets
from sparseconv.cli.options import PROG
from sparseconv.core.files import LOCK_NAME, check_writable, claimed, partial_files, write_whole
from sparseconv.measure.table import Table, with_thousands
from sparseconv.models import DSN
from sparseconv.report import figures
from sparseconv.running import predict_log_proba
from sparseconv.training.checkpoint import digest
from sparseconv.training.loop import CHECKPOINT_NAME, TrainingResult, train
from sparseconv.training.recipe import Recipe
from sparseconv.training.run_folder import CONFIG_NAME, DATA, HISTORY_NAME, TrainedRun, load_run


@contextlib.contextmanager
def new_folder(out: Path, resumable: bool = False) -> Iterator[None]:
    """Claim a new or empty results folder; remove it if the block fails before writing a file."""
    try:
        with claimed(out):
            found = {path.name for path in out.iterdir()} - {LOCK_NAME, CONFIG_NAME}
            for name in (CONFIG_NAME, CHECKPOINT_NAME):
                found -= {path.name for path in partial_files(out / name)}
            if found:  # a run that ended before its first checkpoint leaves none of them
                is_run = (out / CONFIG_NAME).exists()
                what = "a run" if is_run else "other files"
                hint = ", or continue the run with --resume" if resumable and is_run else ""
                raise ValueError(
                    f"{out} already contains {what}; choose another folder with --out{hint}"
                )
            check_writable(out / CONFIG_NAME)
            yield
    except BaseException:
        with contextlib.suppress(OSError):
            out.rmdir()
        raise


def write_config(out: Path, config: Mapping[str, Any]) -> None:
    write_whole(out / CONFIG_NAME, json.dumps(config, indent=2) + "\n")


def correct(model: DSN, data: datasets.Dataset) -> int:
    """Count the test series that the network classifies correctly."""
    log_proba = predict_log_proba(model, torch.from_numpy(data.X_test))
    return int((log_proba.argmax(1).numpy() == data.y_test).sum())


def train_network(
    model: DSN,
    data: datasets.Dataset,
    config: Mapping[str, Any],
    out: Path,
    *,
    quiet: bool,
    resume: bool = False,
) -> tuple[TrainingResult, int, Path]:
    """Train and test a network, and write its results folder.

    Returns:
        The ``TrainingResult``, the number of correctly classified test series, and the path of
        ``summary.md``.
    """
    if not resume:
        write_config(out, config)

    def write_history(history: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_whole(out / HISTORY_NAME, text.getvalue())

    result = train(
        model, data.X_train, data.y_train, Recipe(**config["recipe"]), out=out, resume=resume,
        verbose=not quiet, on_epoch=write_history,
        validation=(data.X_test, data.y_test) if config["data"]["validation"] else None,
    )  # fmt: skip
    write_history(result.history)  # its last row may be missing if the run was killed
    found = correct(model.cpu(), data)
    return result, found, write_summary(out, data, model, result.history, found / len(data.y_test))


def write_summary(
    out: Path,
    data: datasets.Dataset,
    model: DSN,
    history: Sequence[Mapping[str, Any]],
    accuracy: float,
) -> Path:
    """Write ``summary.md`` and its figures from the history; return the path of ``summary.md``."""
    folder = out / "figures"
    layers = model.sparse_layers()
    profiles = [figures.group_profiles(layer) for layer in layers]
    drawn = {
        "Loss and accuracy": figures.learning_curve(history, folder / "learning_curve.png"),
        "Effective receptive fields of kernels and of paths through the layers":
            figures.receptive_fields(
                {"this network": figures.kernels_by_size(model)}, folder / "receptive_fields.png"
            ),
        "Magnitude of the active weights by kernel group and tap":
            figures.group_weights(profiles, layers[0].regions, folder / "group_weights.png"),
    }  # fmt: skip
    kept = figures.best_epoch(history)
    facts = [
        ("test accuracy", f"{accuracy:.4f}"),
        ("lowest training loss", f"{kept['train_loss']:.6f} in epoch {kept['epoch']}"),
        ("epochs", f"{len(history)}"),
        ("pattern updates", f"{sum(bool(row['updated']) for row in history)}"),
        ("training time", f"{sum(float(row['seconds']) for row in history):.0f} s"),
    ]
    cost = model.cost(data.n_timepoints)
    costs = [
        (name, with_thousands(ours), with_thousands(dense), f"{ours / dense:.1%}")
        for name, ours, dense in (
            ("parameters", cost.params, cost.params_dense),
            ("multiply-accumulates executed", cost.macs_executed, cost.macs_dense),
            ("FLOPs as counted in the paper", cost.flops_paper, cost.flops_paper_dense),
        )
    ]
    patterns = [
        (f"{i}: {p.shape[1]} → {p.shape[0]} x {p.shape[2]}", with_thousands(p.nnz),
         with_thousands(p.numel), f"{p.density:.2%}")
        for i, p in enumerate((layer.pattern for layer in layers), start=1)
    ]  # fmt: skip
    parts = [
        f"# DSN on {data.name}", Table(("", "value"), facts).markdown(), "## Cost",
        Table(("per series", "this network", "every tap active", "share"), costs).markdown(),
        "## Sparse layers",
        Table(("channels x taps", "active weights", "of", "density"), patterns).markdown(),
        "## Figures",
        *(f"![{text}]({path.relative_to(out).as_posix()})" for text, path in drawn.items()),
    ]  # fmt: skip
    summary = out / "summary.md"
    write_whole(summary, "\n\n".join(parts) + "\n")
    return summary


def described(data: datasets.Dataset) -> str:
    return (
        f"{data.name}: {len(data.X_train)} training and {len(data.X_test)} test series, "
        f"{data.n_channels} x {data.n_timepoints}, {len(data.classes)} classes"
    )


def data_facts(data: datasets.Dataset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``config.json`` records about the data, to detect a different data set."""
    return {
        "name": data.name,
        "n_train": len(data.X_train),
        "n_test": len(data.X_test),
        "n_channels": data.n_channels,
        "n_timepoints": data.n_timepoints,
        "classes": data.classes.tolist(),
        "train_sha256": digest(torch.from_numpy(data.X_train), torch.from_numpy(data.y_train)),
        "test_sha256": digest(torch.from_numpy(data.X_test), torch.from_numpy(data.y_test)),
        **{name: settings[name] for name in DATA if name in settings},
    }


def path_of(source: str) -> dict[str, str]:
    """Return the entry of ``config.json`` with the data's path; empty for bundled sets."""
    return {} if source in datasets.BUNDLED else {"path": str(Path(source).absolute())}


def folder_of(path: Path) -> Path:
    """Return the absolute folder of a run, given the folder or a file in it."""
    path = path.resolve()
    return path if path.is_dir() else path.parent


def resume_command(out: Path) -> str:
    """Return the command that resumes the run in a results folder."""
    return f"{PROG} {shlex.join(['train', '--out', str(out), '--resume'])}"


def unfinished(run: TrainedRun, path: Path) -> str | None:
    """Describe how far an unfinished run has trained, and what to do; None if it is finished."""
    epochs = run.config.get("recipe", {}).get("epochs")
    if run.epochs_done == epochs:
        return None
    resume = f"to resume: {resume_command(folder_of(path))}"
    remedy = "`prune` cannot resume it; prune again" if "pruning" in run.config else resume
    return f"{run.epochs_done} of {epochs} epochs have been trained; {remedy}"


def load_network(path: Path) -> tuple[TrainedRun, DSN]:
    """Load a run with its network, and warn if it is unfinished.

    Raise ValueError if the run contains random kernels.
    """
    run = load_run(path)
    if isinstance(run.model, DSN):
        if warning := unfinished(run, path):
            print(f"warning: {path} is unfinished: {warning}", file=sys.stderr)
        return run, run.model
    raise ValueError(
        f"{path} contains random kernels; pass the folder of a run that trained a Dynamic Sparse "
        "Network"
    )


def data_of_run(facts: Mapping[str, Any], given: str | None, folder: Path) -> datasets.Dataset:
    """Load a run's data from ``given`` or the recorded path; only the name may differ."""
    source = given or facts.get("path") or facts["name"]
    if given is None and source not in datasets.BUNDLED and not Path(source).exists():
        raise ValueError(
            f"{folder} was trained on {source!r}, which does not exist; specify its location with "
            "--data, or for `train` as NAME_OR_PATH"
        )
    data = datasets.load(source, nan_to_zero=facts["nan_to_zero"])
    for name, value in data_facts(data, facts).items():
        if name != "name" and facts.get(name) != value:
            raise ValueError(
                f"{data.name} is not the data set that {folder} was trained on: its {name} is "
                f"{value!r}, but was {facts.get(name)!r} in training; pass the data of that run, "
                "or start a new run"
            )
    return data
