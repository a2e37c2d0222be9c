"""The paper's sweep of random kernels: whole, and pruned in several ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper.archives import published_accuracy, read
from benchmarks.paper.rocket import expanded
from benchmarks.paper.rows import ROWS_NAME, read_rows
from sparseconv.estimators.pocket import KS, POCKETClassifier

PLAN = """
seeds = [0, 1]
[[run]]
name = "ROCKET"
model = "ROCKET"
sets = "all"
network = {n_kernels = 60}
[[run]]
name = "MiniROCKET"
model = "MiniROCKET"
sets = "all"
network = {n_kernels = 168}
[[run]]
name = "ROCKET, cross-validated"
model = "ROCKET"
sets = "all"
seeds = [0]
network = {n_kernels = 60, cv = true}
[[run]]
name = "ROCKET, ridge by folds"
model = "ROCKET"
sets = "all"
seeds = [0]
network = {n_kernels = 60, k = "cv"}
"""


@pytest.fixture(scope="module")
def out(swept: Callable[[str], Path]) -> Path:
    return swept(PLAN)


def test_rows_are_those_of_the_classifier(out: Path) -> None:
    data = read(str(out.parent / "archive" / "GunPoint.npz"))
    rows = {(row["run"], row["seed"]): row for row in expanded(read_rows(out / ROWS_NAME))}

    def accuracy(**options: Any) -> float:
        classifier = POCKETClassifier(n_kernels=60, random_state=1, **options)
        guess = classifier.fit(data.X_train, data.y_train).predict(data.X_test)
        return float((guess == data.y_test).mean())

    published_count = round(published_accuracy("POCKET kernels")["GunPoint"] / 10_000 * 60)
    for name, keep in {"as published": published_count, "35 %": 21, "10 %": 6}.items():
        row = rows[f"ROCKET, {name}, POCKET", 1]
        assert row["keep"] == keep
        assert row["accuracy"] == accuracy(keep=keep / 60)
        assert rows[f"ROCKET, {name}, POCKET, stage 1", 1]["accuracy"] == accuracy(
            keep=keep / 60, refit=False
        )
        assert rows[f"ROCKET, {name}, magnitude", 1]["accuracy"] == accuracy(
            keep=keep / 60, n_iter=1
        )
        assert rows[f"ROCKET, {name}, random", 1]["keep"] == keep
    assert rows["ROCKET", 1]["accuracy"] == accuracy(keep=1.0)
    assert rows["MiniROCKET, 35 %, POCKET", 0]["keep"] == round(0.35 * 168)
    assert rows["ROCKET, cross-validated, cv, POCKET", 0]["keep"] in (3, 6, 12, 21, 30, 60)
    folds = rows["ROCKET, ridge by folds, as published, POCKET", 0]
    assert folds["keep"] == published_count
    assert folds["k"] in KS
    assert len({name for name, _ in rows}) == 1 + 12 + 1 + 8 + 2 * 3
