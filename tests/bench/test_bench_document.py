"""Documents, and the tables that are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_rows import network, row

from sparseconv.bench import document, tables


def lines(table: Any) -> list[str]:
    return ["|".join(line) for line in table.rows]


# Reading and writing


def test_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text('{"schema": 1}')
    with pytest.raises(ValueError, match=r"bench.json must be .* schema 2, but its schema is 1"):
        document.read(tmp_path / "bench.json")


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "schema": document.SCHEMA, "machine": {},
        "rows": [row("packing")], "network": [network("train", 24)],
    }  # fmt: skip
    document.write_json(content, tmp_path / "bench.json")
    assert document.read(tmp_path / "bench.json") == content


def test_the_best_baseline_is_the_fastest_of_all() -> None:
    found = row("packing", conv1d=3.0, fft=2.0, im2col_csr=2.5)
    assert document.best_baseline(found) == "fft"
    assert document.ratio(found) == document.ratio(found, "fft") == (2.0, 1.8, 2.2)
    assert document.ratio(found, "fft_prepared") is None
    assert document.ratio({"ratio": {"plain_step": [0.5, 0.4, 0.6]}}) is None


# Tables


def test_every_table_names_the_fastest_and_every_baseline() -> None:
    rows = [
        row("dsn_evolved_L128", "dgrad", ms={"sparse": 1.0}, conv1d=8.0, fft_prepared=4.0),
        row("dsn_evolved_L24", ms={"sparse": 1.0}, conv1d=9.0, fft=3.0),
    ]
    found = tables.kernels(rows)
    header = ("", "L", "threads", "ms", "GFLOP/s", "of peak", "vs fastest", "(which)")
    assert found.header == [*header, "vs F.conv1d", "vs fft", "vs fft, prepared"]
    assert lines(found) == [
        "fprop|24|1|1.00|100|90%|3.00 [2.70, 3.30]|fft|9.00|3.00|",
        "dgrad|128|1|1.00|100|90%|4.00 [3.60, 4.40]|fft, prepared|8.00||4.00",
    ]


def test_the_worst_row_and_the_lost_ones_are_judged_by_the_fastest() -> None:
    rows = [
        row("uniform_50", conv1d=2.0, fft=0.8),
        row("uniform_40", conv1d=0.9, fft=1.5),
        row("uniform_10", conv1d=9.0, fft=4.0),
        row("kernel_3", conv1d=1.5),
    ]
    assert lines(tables.faster_baselines(rows)) == [
        "uniform_50|fprop|1|16|47 → 141|39|128|50.0%|0.80 [0.72, 0.88]|fft|2.00",
        "uniform_40|fprop|1|16|47 → 141|39|128|40.0%|0.90 [0.81, 0.99]|F.conv1d|0.90",
    ]
    assert [line.split("|")[:2] for line in lines(tables.worst(rows))] == [
        ["density", "uniform_50"], ["kernel", "kernel_3"],
    ]  # fmt: skip


def test_the_readme_has_the_worse_of_the_threads_and_what_it_lost_to() -> None:
    rows = [row("dsn_evolved_L128", threads=n, conv1d=8.0 - n, fft=4.0 + n) for n in (1, 2)]
    rows += [row(f"uniform_{p}", conv1d=8.0, fft=r) for p, r in ((50, 4.0), (100, 0.25))]
    latency = network("latency", 24, masked_dense=5.0, dense_best=0.9)
    found = tables.when_it_pays({"rows": rows, "network": [latency]})
    assert lines(found) == [
        "layer, 16 series of 128 samples, fprop|6.00|5.00|fft",
        "DSN, latency of one series of 24|5.00|0.90|jit",
        "worst row of all suites and densities|6.00|0.25|fft",
        "layer, lowest density at which dense was faster|above 100 %|100%|fft",
    ]


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


def test_rows_beside_other_baselines_have_no_plain_figure() -> None:
    rows = [row("dsn_evolved_L128", fft=4.0), row("dsn_evolved_L128", "dgrad", ratio={})]
    assert lines(tables.when_it_pays({"rows": rows, "network": []})) == [
        "layer, 16 series of 128 samples, fprop|-|4.00|fft",
        "worst row of all suites and densities|-|4.00|fft",
    ]
