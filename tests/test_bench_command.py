"""``python -m sparseconv bench``: what it prints and writes, and what it refuses to begin."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from dense_kernels import dense_ops, one_wrong
from toy_run import refused

from sparseconv import _backends
from sparseconv.bench import command, growth, peaks, run, tables
from sparseconv.bench.cases import CASES, SUITES, Case
from sparseconv.bench.rivals import RIVALS
from sparseconv.cli import main

needs_extension = pytest.mark.skipif(
    _backends.extension is None, reason="the C++ extension is not built"
)
SMALL = ("bench", "--cases", "tiny_module", "wgrad_splits", "--threads", "1", "--rounds", "3")
PEAK = {
    "threads": 1, "isa": "avx512", "dtype": "float32",
    "fma_gflops": 2.0, "l1_gflops": 2.0, "l2_gflops": 1.0, "stream_gbs": 0.5,
}  # fmt: skip
ROW_FIELDS = (
    "case suite computation dtype threads isa batch in_channels out_channels kernel_size length "
    "output_length stride dilation groups nnz density flops dense_flops bytes ms ratio gflops "
    "share_of_peak share_of_roof drift checked"
)


@pytest.fixture
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "measure", lambda counts: [PEAK | {"threads": n} for n in counts])


@needs_extension
def test_everything_that_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    quick_peaks: None,
) -> None:  # fmt: skip
    written: list[tuple[dict[str, Any], Path]] = []
    fake = ModuleType("sparseconv.bench.report")
    fake.write = lambda document, path: written.append((document, path))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sparseconv.bench.report", fake)
    paths = {kind: tmp_path / "new" / f"rows.{kind}" for kind in ("json", "csv", "html")}
    files = [word for kind, path in paths.items() for word in (f"--{kind}", str(path))]
    sizes = [Case(1, 2, 3, 3, length, name="tiny", suite="layer") for length in (8, 16)]
    monkeypatch.setattr(growth, "SERIES", {"length": sizes})
    assert main([*SMALL, "--rivals", "conv1d", "fft", "--growth", *files]) == 0

    document = json.loads(paths["json"].read_text())
    assert list(document) == ["schema", "machine", "peaks", "rows", "growth", "network"]
    assert document["schema"] == 1
    assert document["peaks"] == [PEAK]
    assert document["network"] == []
    assert document["machine"]["torch"] == torch.__version__
    assert all(isinstance(value, str) and value for value in document["machine"].values())
    names = [(row["case"], row["computation"]) for row in document["rows"]]
    assert names == [("tiny_module", "fprop"), *(("wgrad_splits", n) for n in run.COMPUTATIONS)]
    for row in document["rows"]:
        assert set(ROW_FIELDS.split()) <= set(row)
    assert [fit["quantity"] for fit in document["growth"]] == ["length"] * 3
    assert written == [(document, paths["html"])]
    with paths["csv"].open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(document["rows"])
    for line, row in zip(lines, document["rows"], strict=True):
        assert (line["case"], int(line["nnz"])) == (row["case"], row["nnz"])
        assert float(line["ms_sparse"]) == row["ms"]["sparse"]
        three = [float(line[f"ratio_conv1d{end}"]) for end in ("", "_low", "_high")]
        assert three == row["ratio"]["conv1d"]
    assert lines[0]["ms_fft"] == ""  # the module has one rival
    assert lines[1]["ms_fft"] != ""
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["rows.csv", "rows.json"]

    shown = capsys.readouterr()
    assert shown.out.count("wgrad_splits") == 3
    assert "conv2d_channels_last" not in shown.out
    assert document["machine"]["cpu"] in shown.out
    assert "wgrad_splits" in shown.err  # progress


@needs_extension
@pytest.mark.parametrize("name", run.COMPUTATIONS)
def test_no_figure_is_given_for_a_wrong_kernel(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, quick_peaks: None,
) -> None:  # fmt: skip
    monkeypatch.setattr(command, "_ops", dense_ops(**{name: one_wrong}))
    out = tmp_path / "rows.json"
    words = ["bench", "--cases", "taps_far_apart", "--threads", "1", "--json", str(out)]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"taps_far_apart, 1 threads: {name} is wrong" in shown.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--suites", "layers"], ["no suite 'layers'", *SUITES]),
        (["--cases", "dsn"], ["no case 'dsn'", "dsn_prefix_L24", "packing"]),
        (["--rivals", "winograd"], ["no rival 'winograd'", *RIVALS]),
        (["--threads", "0"], ["--threads must be at least 1", "0"]),
        (["--rounds", "2"], ["--rounds must be at least 3", "2"]),
        (["--rounds", "9", "--quick"], ["--quick means --rounds 5"]),
    ],
)
def test_refusals(
    words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(command, "run", lambda *a, **k: pytest.fail("measured"))
    refused(capsys, ["bench", *words], *expected)


@pytest.mark.parametrize("kind", ["json", "csv"])
@pytest.mark.parametrize("where", ["folder", "below a file", "forbidden"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    kind: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(command, "run", lambda *a, **k: pytest.fail("measured"))
    monkeypatch.setattr(command, "cpp_or_reason", lambda: "")
    (tmp_path / "file").touch()
    path = {
        "folder": tmp_path,
        "below a file": tmp_path / "file" / "rows",
        "forbidden": tmp_path / "rows",
    }[where]
    if where == "forbidden":  # to root, nothing is

        def refuse(self: Path, **_: object) -> None:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "touch", refuse)
    refused(capsys, ["bench", f"--{kind}", str(path)], str(path), "cannot be written", "choose")


def test_a_missing_report_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run", lambda *a, **k: pytest.fail("measured"))
    monkeypatch.setattr(command, "cpp_or_reason", lambda: "")
    monkeypatch.setitem(sys.modules, "sparseconv.bench.report", None)  # import fails
    path = tmp_path / "report.html"
    refused(capsys, ["bench", "--html", str(path)], "--html cannot be written", "sparseconv[tsc]")


def test_without_the_extension_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_backends, "extension", None)
    monkeypatch.setattr(_backends, "_missing_reason", "the C++ extension is not built (why)")
    refused(capsys, ["bench"], "nothing to measure", "not built (why)")


def test_list_shows_every_case_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [
        case.name for suite in SUITES for case in CASES.values() if case.suite == suite
    ]
    assert main(["bench", "--list", "--suites", "isa"]) == 0
    assert capsys.readouterr().out.count("ISA avx2") == 3


@needs_extension
def test_rivals_by_default_and_what_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quick_peaks: None
) -> None:
    asked: dict[str, tuple[int, list[str]]] = {}

    def fake(case: Case, _: object, *, rival_names: list[str], **__: object) -> list[Any]:
        asked[case.name] = torch.get_num_threads(), list(rival_names)
        return []

    monkeypatch.setattr(command, "measure", fake)
    other = Case(1, 1, 1, 1, 1, name="other_isa", suite="isa", isa="neon9")
    cases = [CASES["dsn_evolved_L24"], CASES["stride_2"], other]
    assert command.run(cases, [2])["rows"] == []
    assert asked == {
        "dsn_evolved_L24": (2, list(RIVALS)),
        "stride_2": (2, ["conv1d", "conv2d_channels_last"]),
    }
    assert "other_isa is left out: this CPU has no neon9" in capsys.readouterr().err


def test_growth_belongs_to_the_whole_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(command, "cpp_or_reason", lambda: "")
    monkeypatch.setattr(command, "shown", lambda document: "")
    monkeypatch.setattr(command, "run", lambda *a, series, **k: asked.append(series))
    for words in ([], ["--suites", "isa"], ["--quick"], ["--suites", "isa", "--growth"]):
        assert main(["bench", *words]) == 0
    assert asked == [list(growth.SERIES), [], [], list(growth.SERIES)]


def test_absent_rivals_are_explained_once() -> None:
    rows = [
        {"case": "a", "computation": "fprop", "absent": {"fft": "no"}},
        {"case": "a", "computation": "fprop", "absent": {"fft": "no"}},
        {"case": "b", "computation": "dgrad", "absent": {"fft": "no", "conv1d": "wrong"}},
    ]
    assert tables.absences(rows) == [
        "fft is left out of a fprop, b dgrad: no",
        "conv1d is left out of b dgrad: wrong",
    ]
