"""Accuracy against time of classifiers on random kernels: what is made of the measured lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aeon", reason="aeon is not installed")

from benchmarks.lines import add_line, read_lines
from benchmarks.studies import classifiers
from benchmarks.studies.__main__ import main
from sparseconv.estimators.pocket import POCKETClassifier


def line(classifier: str, dataset: str, accuracy: float, seed: int = 0) -> dict[str, Any]:
    return {
        "classifier": classifier, "dataset": dataset, "seed": seed, "accuracy": accuracy,
        "fit_seconds": 2.0, "predict_seconds": 0.5, "n_test": 100,
        "machine": {"cpu": "a processor", "date": "today"},
    }  # fmt: skip


def test_means_of_common_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line("ours", "a", 0.9), line("ours", "a", 0.7, seed=1), line("ours", "b", 0.5)]
    lines += [line("theirs", "a", 0.9)]
    file = tmp_path / "time.jsonl"
    for row in lines:
        add_line(file, row)
    monkeypatch.setattr(classifiers, "read_rows", lambda _: [])
    monkeypatch.setattr(classifiers, "RESULTS", file)
    text = classifiers.section(file)
    assert "| ours       |      65.00 |     2 |          5000 |" in text
    assert "theirs" not in text
    assert "2 data sets (a, b), 3 seeds each" in text
    assert classifiers.draw(tmp_path / "a.png").stat().st_size > 5000


def test_each_fit_is_a_line_and_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(20, 1, 30)), np.arange(20) % 2
    archive = tmp_path / "archive"
    archive.mkdir()
    np.savez(archive / "GunPoint.npz", X_train=X[:12], y_train=y[:12], X_test=X[12:], y_test=y[12:])
    trained = [{"run": "DSN", "dataset": "GunPoint", "seed": 0, "train_seconds": None}]
    monkeypatch.setattr(classifiers, "read_rows", lambda _: trained)
    small = {"ROCKET": lambda seed: POCKETClassifier(n_kernels=20, random_state=seed)}
    monkeypatch.setattr(classifiers, "classifiers", lambda: small)
    out = tmp_path / "new" / "time.jsonl"
    words = ["classifiers", "--archive", str(archive), "--out", str(out)]
    assert main(words) == 0
    before = out.read_text()
    rows = read_lines(out)
    assert [row["seed"] for row in rows] == [0, 1, 2]
    assert all(row["fit_seconds"] > 0 and 0 <= row["accuracy"] <= 1 for row in rows)
    assert main(words) == 0
    assert out.read_text() == before
