"""Documents, and the tables that are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench_rows import network, row

from sparseconv.bench import document, tables


def lines(table: Any) -> list[str]:
    return ["|".join(line) for line in table.rows]


# Reading and writing


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    content = {"machine": {}, "rows": [row("packing")], "network": [network("train", 24)]}
    document.write_json(content, tmp_path / "bench.json")
    assert document.read(tmp_path / "bench.json") == content


def test_the_best_baseline_is_the_fastest_of_all() -> None:
    found = row("packing", conv1d=3.0, fft=2.0, im2col_csr=2.5)
    assert document.best_baseline(found) == "fft"
    assert document.ratio(found) == document.ratio(found, "fft") == (2.0, 1.8, 2.2)
    assert document.ratio(found, "fft_prepared") is None
    assert document.ratio({"ratio": {"plain_step": [0.5, 0.4, 0.6]}}) is None


# Tables


def test_the_network_keeps_the_baselines_apart() -> None:
    rows = [
        network("train", 128, dense_best=3.0, peak_bytes={"sparse": 2e6}),
        network("update", 9, ratio={}),
    ]
    assert lines(tables.network(rows)) == [
        "training step|16|1|128|1|2.00|9.00 [9.00, 9.00]|3.00|jit|2.0",
        "… with an update|16|1|9|1|2.00|||jit|",
    ]


def test_absent_baselines_are_explained_once() -> None:
    rows = [
        {"case": "a", "computation": "fprop", "absent": {"fft": "no"}},
        {"case": "a", "computation": "fprop", "absent": {"fft": "no"}},
        {"case": "b", "computation": "dgrad", "absent": {"fft": "no", "conv1d": "wrong"}},
        *(network("train", length, absent={"dense_best, jit": "why"}) for length in (8, 24)),
    ]
    assert tables.absences(rows) == [
        "fft is left out of a fprop, b dgrad: no",
        "conv1d is left out of b dgrad: wrong",
        "dense_best, jit is left out of DSN train L=8, DSN train L=24: why",
    ]
