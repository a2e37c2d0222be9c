"""Measure accuracy, sizes and instructions of exported networks, per program and processor."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparseconv as sc
from benchmarks.edge import targets
from benchmarks.edge.targets import Target
from benchmarks.paper.archives import find
from benchmarks.recording import add_missing
from sparseconv.cli.main import main as command_line
from sparseconv.cli.results import data_of_run
from sparseconv.datasets import Dataset
from sparseconv.edge.export import WEIGHTS
from sparseconv.edge.lowering import lower
from sparseconv.running import predict_log_proba

RESULTS = Path(__file__).parents[1] / "results" / "edge" / "rows.jsonl"
SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95)  # of the first data set
USUAL = 0.8  # of the others; emulators predict the whole test set of these networks
# Univariate and multivariate, 24 to 500 samples; those that aeon brings, then of an archive.
BUNDLED = (
    "GunPoint", "ItalyPowerDemand", "BasicMotions", "JapaneseVowels", "ArrowHead", "OSULeaf",
)  # fmt: skip
ARCHIVE = ("Coffee", "SyntheticControl", "ECG200", "Epilepsy", "ShapeletSim")
# Short: what is compared is the same network in PyTorch and in C.
TRAINING = ("--epochs", "100", "--lr", "1e-3", "--nan-to-zero", "--threads", "1", "--quiet")


@dataclass(frozen=True)
class Trained:
    dataset: str
    sparsity: float
    model: sc.models.DSN
    data: Dataset
    whole: bool  # emulators predict the whole test set; else a few series, for the cost


def trained(archive: Path | None) -> Iterator[Trained]:
    """Train the networks that the folder ``runs/edge`` lacks, and yield all of them."""
    sources = {name: name for name in BUNDLED}
    if archive is not None:
        found = find(archive)
        sources |= {name: found[name] for name in ARCHIVE if name in found}
        if missing := ", ".join(name for name in ARCHIVE if name not in found):
            print(f"skipped: {missing} ({archive} does not contain them)", flush=True)
    for name, source in sources.items():
        for sparsity in SPARSITIES if name in BUNDLED[:1] else (USUAL,):
            out = Path("runs/edge") / f"{name}-{round(100 * sparsity)}"
            if not (out / "summary.md").exists():
                resume = ["--resume"] if (out / "checkpoint.pt").exists() else []
                options = ["--sparsity", str(sparsity), "--out", str(out), *resume]
                if command_line(["train", source, *TRAINING, *options]):
                    raise RuntimeError(f"training on {name} failed; see the error above")
            yield load(out, source, whole=sparsity == USUAL)


def load(run_folder: Path, source: str | None = None, whole: bool = True) -> Trained:
    """Load a run of ``python -m sparseconv train``, and its data by name or from ``source``."""
    run = sc.load_run(run_folder)
    if not isinstance(run.model, sc.models.DSN):
        raise ValueError(f"expected a run of a DSN, but {run_folder} contains random kernels")
    data = data_of_run(run.config["data"], source, run_folder)
    return Trained(data.name, run.config["network"]["sparsity"], run.model, data, whole)


def measure(one: Trained, machines: Sequence[Target], out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:

        @cache
        def programs(weights: str) -> tuple[Path, Path]:
            sparse, dense = Path(folder) / weights / "sparse", Path(folder) / weights / "dense"
            _export(one, one.model, weights, sparse)
            _export(one, every_tap(one.model), weights, dense)
            return sparse, dense

        jobs = {
            (one.dataset, one.sparsity, weights, target.name):
                partial(_row, one, weights, target, programs)
            for weights in WEIGHTS for target in machines
        }  # fmt: skip
        add_missing(out, ("dataset", "sparsity", "weights", "target"), jobs)


def _row(
    one: Trained, weights: str, target: Target, programs: Callable[[str], tuple[Path, Path]]
) -> dict[str, Any]:
    program, dense = programs(weights)
    data, native = one.data, not target.emulator
    X, y = data.X_test, data.y_test
    if not native and not one.whole:
        X, y = X[:5], y[:5]
    wanted = predict_log_proba(one.model, torch.from_numpy(X)).numpy()
    labels, scores = targets.predict(target, program, X, wanted.shape[1], labels=native)
    chosen = scores.argmax(1)
    if native and (scores[range(len(X)), labels] != scores.max(1)).any():
        raise RuntimeError(
            f"{one.dataset}: expected net_predict to return the class with the largest score"
        )
    row: dict[str, Any] = {
        "n_test": len(data.X_test), "n_predicted": len(X), "n_channels": data.n_channels,
        "n_timepoints": data.n_timepoints, "classes": len(data.classes),
        "accuracy_pytorch": float((wanted.argmax(1) == y).mean()),
        "accuracy": float((chosen == y).mean()),
        "labels_differ": int((chosen != wanted.argmax(1)).sum()),
        "difference": float(np.abs(scores - wanted).max()),
        "bits": hashlib.sha256(scores.tobytes()).hexdigest()[:16],
        "size": targets.sizes(target, program),
        "machine": {"tools": target.versions()},
    }  # fmt: skip
    if weights == "float32" and native:  # of the computed bounds, how much is used
        network = lower(one.model, *X.shape[1:])
        row["of_bound"] = max(
            targets.used_of_bound(program, network, X[at : at + 16]) for at in range(0, len(X), 16)
        )
    if target.counts:
        row["instructions"] = targets.count(target, program)
        row["dense"] = {
            "instructions": targets.count(target, dense), "size": targets.sizes(target, dense)
        }  # fmt: skip
        if data.n_timepoints == 150:  # the length that it is written for
            row["straightforward"] = targets.straightforward(
                target, program.parent, weights == "int8"
            )
    return row


def _export(one: Trained, model: sc.models.DSN, weights: str, folder: Path) -> None:
    # No instruction depends on the scales of the dense program, so few series do.
    known = one.data.X_train if model is one.model else one.data.X_train[:4]
    calibration = known if weights == "int8" else None
    sc.export_c(
        model, one.data.X_test[:1], folder, name="net", weights=weights, calibration=calibration
    )


def every_tap(model: sc.models.DSN) -> sc.models.DSN:
    """Return the same network with inactive weights stored as zeros."""
    dense = copy.deepcopy(model)
    for layer in dense.sparse_layers():
        layer.set_pattern(sc.KernelCSR.full(layer.pattern.shape))
    return dense.eval()
