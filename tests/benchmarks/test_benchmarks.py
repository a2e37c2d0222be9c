"""The demo, files of rows, and the figures of README and the plots that are made of them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import demo, plots, readme
from benchmarks.recording import add_line, read_lines
from docs import generate
from sparseconv import datasets
from sparseconv.measure.table import with_thousands
from sparseconv.models import DSN
from sparseconv.ops.backends import extension


@pytest.mark.skipif(extension is None, reason="the C++ extension is not built")
def test_the_demo_writes_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = datasets.load(demo.DATASET)
    short = replace(whole, X_train=whole.X_train[..., :30], X_test=whole.X_test[..., :30])
    trained, train = [], demo.train
    monkeypatch.setattr(demo, "train", lambda *all: trained.append(train(*all)) or trained[-1])
    monkeypatch.setattr(datasets, "load", lambda name: short)
    monkeypatch.setattr(demo, "ROUNDS", 6)
    monkeypatch.setattr(demo, "DSN", partial(demo.DSN, nf=6, kernel_size=9, depth=2))
    assert demo.main(["--epochs", "2", "--out", str(tmp_path)]) == 0
    assert [len(result.history) for result in trained] == [2, 2, 2]
    printed = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line for line in printed.splitlines() if "|" in line}
    assert rows.keys() > demo.NETWORKS.keys()
    dense = DSN(1, 2, nf=6, kernel_size=9, depth=2, sparsity=0).cost(30)
    assert f" {with_thousands(dense.params)} |" in rows["dense"]
    (sentence,) = (line for line in printed.splitlines() if line.startswith("With "))
    assert sentence in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_readme_is_made_of_a_whole_run(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(readme.recorded() | {"complete": False}))
    with pytest.raises(ValueError, match="must contain a complete run"):
        readme.recorded(path)


# Plots


def test_the_same_results_give_the_same_pictures(tmp_path: Path) -> None:
    rc_context = pytest.importorskip("matplotlib").rc_context
    rows = [row for row in readme.recorded()["rows"] if row["case"] == "uniform_10"]
    with rc_context(generate.SVG):
        once, again = (plots.write_all({"rows": rows}, tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in once] == [
        "time-saved.svg", "break-even-1.svg", "break-even-2.svg",
    ]  # fmt: skip
    for one, other in zip(once, again, strict=True):
        generate.shorten(one)
        generate.shorten(other)
        assert one.read_text() == other.read_text()
        assert one.read_text().startswith("<?xml")
    fewer = {name: rows[0]["ratio"][name] for name in rows[0]["ratio"] if "fft" not in name}
    caption = plots.captions([*rows, rows[0] | {"case": "another", "ratio": fewer}])["saved"]
    assert "Not timed in every case: fft, fft_prepared." in caption


ROWS = [{"a": 1, "name": "é\u2028\n"}, {"a": [2.5, None]}]


def test_a_kill_at_any_byte_loses_the_last_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for each in ROWS:
        add_line(path, each)
    assert read_lines(path) == ROWS
    whole = path.read_bytes()
    first, second = whole.index(b"\n"), len(whole) - 1
    for size in range(len(whole)):
        kept = ROWS[: int(size >= first) + int(size >= second)]  # without its newline it is whole
        path.write_bytes(whole[:size])
        assert read_lines(path) == kept
        add_line(path, {"new": size})
        assert read_lines(path) == [*kept, {"new": size}]


def test_several_may_add_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    def add(who: int) -> None:
        for number in range(50):
            add_line(path, {"who": who, "number": number, "pad": "x" * 5000})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    rows = read_lines(path)
    for who in range(4):
        assert [row["number"] for row in rows if row["who"] == who] == list(range(50))
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
