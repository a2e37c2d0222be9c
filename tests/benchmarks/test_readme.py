"""The figures of README and the plots, made of recorded rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bench_rows import network, row

from benchmarks import front_page, plots, readme
from benchmarks.bench.cases import SUITES, select
from sparseconv.measure.table import Table


@pytest.mark.parametrize("part", [{"suites": ["layer"]}, {"rounds": 6}, {"complete": False}])
def test_readme_is_made_of_a_whole_run(part: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    bench = readme.recorded() | {"suites": list(SUITES), "rounds": 12}
    path.write_text(json.dumps(bench))
    assert readme.recorded(path) == bench
    path.write_text(json.dumps(bench | part))
    with pytest.raises(ValueError, match="must contain a complete run"):
        readme.recorded(path)


def test_what_the_readme_says_of_the_classifiers_is_measured() -> None:
    rows = {tool: cells for _, tool, _, *cells in front_page.tools().rows}
    numbers = {
        tool: [float(cell.split()[0].strip("~")) for cell in cells] for tool, cells in rows.items()
    }
    networks = ("DSN, two layers", "DSN", "InceptionTime")
    for tool in ("MiniROCKET", "ROCKET, 10 %"):
        accuracy, fit, predict = numbers[tool]
        assert accuracy > max(numbers[name][0] for name in ("DSN, two layers", "DSN"))
        assert fit < min(numbers[name][1] for name in networks)
        assert predict < min(numbers[name][2] for name in networks)


def test_a_difference_is_shown_where_its_interval_is_on_one_side_of_0() -> None:
    one = pd.Series({"a": 90.0, "b": 80.0, "c": 71.0})
    by_one = front_page.compared(one, one - 1)
    assert front_page.points(by_one) == "+1.0 points [+1.0, +1.0]"
    mixed = front_page.compared(one, one + pd.Series({"a": 1, "b": -1, "c": 0}))
    assert front_page.points(mixed, 2).endswith(", not significant")


# Tables


def lines(table: Table) -> list[str]:
    return ["|".join(line) for line in table.rows]


def test_the_ratios_are_of_the_worse_of_the_threads_and_what_it_lost_to() -> None:
    rows = [row("dsn_evolved_L128", threads=n, conv1d=8.0 - n, fft=4.0 + n) for n in (1, 2)]
    rows += [row(f"uniform_{p}", conv1d=8.0, fft=r) for p, r in ((50, 4.0), (100, 0.25))]
    latency = network("latency", 24, batch=1, masked_dense=5.0, dense_best=0.9)
    found = readme.when_it_pays({"rows": rows, "network": [latency]})
    assert lines(found) == [
        "layer, 16 series of 128 time steps, fprop|6.00|5.00|fft",
        "DSN, latency of one series of 24|5.00|0.90|jit",
        "worst row of all suites and densities|6.00|0.25|fft",
        "layer, lowest density at which dense was faster|above 100 %|100%|fft",
    ]


# Plots


def test_the_registry_spans_the_maps_and_cells_are_the_fastest_baselines() -> None:
    suites = ["density", "length", "channels", "kernel", "break_even", "layer"]
    rows = [row(case.name, conv1d=8.0, fft=2.0) for case in select(suites)]
    for each in plots.MAPS:
        np.testing.assert_allclose(plots.map_of(rows, each), 2.0)


def test_the_same_results_give_the_same_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row("uniform_10", threads=n) for n in (1, 2)]
    once, again = (plots.write_all({"rows": rows}, tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in once] == [
        "time-saved.svg", "break-even-1.svg", "break-even-2.svg",
    ]  # fmt: skip
    for one, other in zip(once, again, strict=True):
        assert one.read_text() == other.read_text()
        assert one.read_text().startswith("<?xml")
    caption = plots.captions([*rows, row("uniform_5", conv1d=2.0, im2col_csr=1.0)])["saved"]
    assert "Not timed in every case: conv2d_channels_last, fft_prepared, im2col_csr." in caption
