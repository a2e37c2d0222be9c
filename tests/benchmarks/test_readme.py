"""The figures of README and the plots, made of recorded rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_rows import row

from benchmarks import plots, readme
from benchmarks.bench.cases import SUITES, select


@pytest.mark.parametrize("part", [{"suites": ["layer"]}, {"rounds": 6}, {"complete": False}])
def test_readme_is_made_of_a_whole_run(part: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    bench = readme.recorded() | {"suites": list(SUITES), "rounds": 12}
    path.write_text(json.dumps(bench))
    assert readme.recorded(path) == bench
    path.write_text(json.dumps(bench | part))
    with pytest.raises(ValueError, match="must contain a complete run"):
        readme.recorded(path)


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
