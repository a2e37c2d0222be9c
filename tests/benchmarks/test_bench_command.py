"""``python -m sparseconv bench``: what it measures, prints and writes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_rows import network

from benchmarks import recording
from benchmarks.bench import command as bench
from benchmarks.bench import networks, run
from benchmarks.bench.cases import Case
from sparseconv.cli.main import main


def test_everything_that_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network("train", 24, masked_dense=4.0)

    def tasks(counts: list[int], modes: list[str], **settings: Any) -> list[Any]:
        assert (counts, settings["rounds"]) == ([1], bench.QUICK_ROUNDS)
        assert settings["baselines"] == bench.QUICK_BASELINES  # nothing compiled
        assert modes == list(networks.MODES)
        return [("DSN train", lambda: [net])]

    monkeypatch.setattr(networks, "tasks", tasks)
    paths = {kind: tmp_path / "new" / f"rows.{kind}" for kind in ("json", "csv")}
    words = ["--cases", "stride_2", "wgrad_splits", "--threads", "1", "--quick"]
    words += ["--suites", "network", "--baselines", "conv1d", "fft"]
    words += [word for kind, path in paths.items() for word in (f"--{kind}", str(path))]
    assert main(["bench", *words]) == 0

    found = recording.read(paths["json"])
    assert all(float(f"{ms:.5g}") == ms for row in found["rows"] for ms in row["ms"].values())
    assert (found["suites"], found["rounds"]) == (["network"], 6)  # of the others not every case
    assert (found["complete"], found["network"]) == (True, [net])
    assert found["machine"]["torch"] == torch.__version__
    names = [(row["case"], row["computation"]) for row in found["rows"]]
    assert names == [(case, n) for case in ("stride_2", "wgrad_splits") for n in run.COMPUTATIONS]
    with paths["csv"].open() as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, found["rows"], strict=True):
        assert (line["case"], int(line["nnz"])) == (row["case"], row["nnz"])
        assert float(line["ms_sparse"]) == row["ms"]["sparse"]
        three = [float(line[f"ratio_conv1d{end}"]) for end in ("", "_low", "_high")]
        assert three == row["ratio"]["conv1d"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["rows.csv", "rows.json"]

    shown = capsys.readouterr()
    assert shown.out.count("wgrad_splits") == 3
    assert "4.00 [4.00, 4.00]" in shown.out
    assert found["machine"]["cpu"] in shown.out
    assert "wgrad_splits" in shown.err  # progress


@pytest.mark.parametrize("error", [KeyboardInterrupt, run.WrongResultError("wgrad is wrong")])
def test_what_was_measured_before_an_end_is_kept(
    error: type[BaseException] | BaseException, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    row = {"suite": "options", "case": "any", "computation": "fprop", "density": 1.0, "ratio": {}}

    def fake(count: int, case: Case, **__: object) -> list[Any]:
        if case.name == "stride_2":
            raise error
        return [row]

    monkeypatch.setattr(bench, "measure", fake)
    out = tmp_path / "rows.json"
    out.write_text("an earlier run")
    words = ["--cases", "pointwise", "stride_2", "dilation_4", "--threads", "1"]
    code = main(["bench", *words, "--json", str(out)])
    assert code == (130 if error is KeyboardInterrupt else 1)
    found = json.loads(out.read_text())
    assert (found["rows"], found["complete"]) == ([row], False)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"earlier measurements are in {out}" in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_a_reader_that_has_enough() -> None:
    """As in ``... | head``: no message, a shell's exit code; and nothing is imported needlessly."""
    code = (
        "import sys\nfrom sparseconv.cli.main import main\ncode = main(['bench', '--list'])\n"
        "assert not {'matplotlib', 'aeon', 'scipy'} & set(sys.modules)\nsys.exit(code)"
    )
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
