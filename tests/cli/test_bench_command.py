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

from sparseconv.bench import growth, run, suite, tables
from sparseconv.bench.cases import CASES, SUITES, Case
from sparseconv.bench.network import compare
from sparseconv.bench.rivals import RIVALS
from sparseconv.cli import bench
from sparseconv.cli.main import main
from sparseconv.measure import peaks
from sparseconv.ops import backends

needs_extension = pytest.mark.skipif(
    backends.extension is None, reason="the C++ extension is not built"
)
SMALL = ("bench", "--cases", "tiny_module", "wgrad_splits", "--threads", "1", "--rounds", "3")
PEAK = {
    "threads": 1, "isa": "avx512", "dtype": "float32",
    "fma_gflops": 2.0, "l1_gflops": 2.0, "l2_gflops": 1.0, "stream_gbs": 0.5,
}  # fmt: skip
NROW = {
    "model": "DSN", "mode": "train", "length": 24, "batch": 16, "in_channels": 1, "threads": 1,
    "rounds": 3, "ms": {"sparse": 5.0, "masked_dense": 20.0, "dense_best": 15.0},
    "ratio": {"masked_dense": [4.0, 3.9, 4.1], "dense_best": [3.0, 2.9, 3.1]}, "absent": {},
    "settings": {"dense_best": "channels_last"}, "parts": {"sparse": {"1x1 conv": 1.5}},
}  # fmt: skip
ROW_FIELDS = (
    "case suite computation dtype threads isa batch in_channels out_channels kernel_size length "
    "output_length stride dilation groups nnz density flops dense_flops bytes ms ratio gflops "
    "share_of_peak share_of_roof drift checked rounds"
)


@pytest.fixture
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "measure", lambda counts: [PEAK | {"threads": n} for n in counts])


def fake_network(**settings: Any) -> list[compare.Task]:
    assert (settings["threads"], settings["rounds"]) == ([1], 3)
    return [compare.Task("DSN train", lambda: NROW)]


@needs_extension
def test_everything_that_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    quick_peaks: None,
) -> None:  # fmt: skip
    written: list[tuple[dict[str, Any], Path]] = []
    fake = ModuleType("sparseconv.bench.page.report")
    fake.write = lambda document, path: written.append((document, path))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sparseconv.bench.page.report", fake)
    paths = {kind: tmp_path / "new" / f"rows.{kind}" for kind in ("json", "csv", "html")}
    files = [word for kind, path in paths.items() for word in (f"--{kind}", str(path))]
    sizes = [Case(1, 2, 3, 3, length, name="tiny", suite="layer") for length in (8, 16)]
    monkeypatch.setattr(growth, "SERIES", {"length": sizes})
    monkeypatch.setattr(compare, "tasks", fake_network)
    words = ["--suites", "growth", "network", "--rivals", "conv1d", "fft"]
    assert main([*SMALL, *words, *files]) == 0

    text = paths["json"].read_text()
    document = json.loads(text)
    for key in ("peaks", "rows", "growth", "network", "goals"):  # a line each, for diffs
        written_as = [json.dumps(entry) for entry in document[key]]
        assert written_as
        assert all(
            any(line.startswith(entry) for line in text.splitlines()) for entry in written_as
        )
    for row in document["rows"]:
        assert all(float(f"{ms:.5g}") == ms for ms in row["ms"].values())
    assert list(document) == [
        "schema", "complete", "machine", "peaks", "rows", "growth", "network", "goals",
    ]  # fmt: skip
    assert (document["schema"], document["complete"]) == (1, True)
    assert document["peaks"] == [PEAK]
    assert document["network"] == [NROW]
    assert {"goal", "measured", "verdict"} == set(document["goals"][0])
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
    assert "4.00 [3.90, 4.10]" in shown.out
    assert "1x1 conv" in shown.out
    assert "DSN, training step, L = 24: ≥ 3x masked dense" in shown.out
    assert document["machine"]["cpu"] in shown.out
    assert "wgrad_splits" in shown.err  # progress


@needs_extension
@pytest.mark.parametrize("name", run.COMPUTATIONS)
def test_no_figure_is_given_for_a_wrong_kernel(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, quick_peaks: None,
) -> None:  # fmt: skip
    monkeypatch.setattr(suite, "calls", dense_ops(**{name: one_wrong}))
    out = tmp_path / "rows.json"
    words = ["bench", "--cases", "taps_far_apart", "--threads", "1", "--json", str(out)]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"taps_far_apart, 1 threads: {name} is wrong" in shown.err
    assert "before" not in shown.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--suites", "layers"], ["no suite 'layers'", *SUITES, "growth", "network"]),
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
    monkeypatch.setattr(suite, "run", lambda *a, **k: pytest.fail("measured"))
    refused(capsys, ["bench", *words], *expected)


@pytest.mark.parametrize("kind", ["json", "csv"])
@pytest.mark.parametrize("where", ["folder", "below a file", "forbidden"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    kind: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(suite, "run", lambda *a, **k: pytest.fail("measured"))
    monkeypatch.setattr(bench, "cpp_or_reason", lambda: "")
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
    monkeypatch.setattr(suite, "run", lambda *a, **k: pytest.fail("measured"))
    monkeypatch.setattr(bench, "cpp_or_reason", lambda: "")
    monkeypatch.setitem(sys.modules, "sparseconv.bench.page.report", None)  # import fails
    path = tmp_path / "report.html"
    refused(capsys, ["bench", "--html", str(path)], "--html cannot be written", "sparseconv[tsc]")


def test_without_the_extension_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "extension", None)
    monkeypatch.setattr(backends, "_missing_reason", "the C++ extension is not built (why)")
    refused(capsys, ["bench"], "nothing to measure", "not built (why)")


def test_list_shows_every_case_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [
        case.name for suite in SUITES for case in CASES.values() if case.suite == suite
    ]
    assert main(["bench", "--list", "--suites", "isa"]) == 0
    assert capsys.readouterr().out.count("ISA avx2") == 3
    assert main(["bench", "--list", "--suites", "network"]) == 0
    assert capsys.readouterr().out.startswith("network: the whole network")


@needs_extension
def test_rivals_by_default_and_what_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quick_peaks: None
) -> None:
    asked: dict[str, tuple[int, list[str]]] = {}

    def fake(case: Case, _: object, *, rival_names: list[str], **__: object) -> list[Any]:
        asked[case.name] = torch.get_num_threads(), list(rival_names)
        return []

    monkeypatch.setattr(suite, "measure", fake)
    other = Case(1, 1, 1, 1, 1, name="other_isa", suite="isa", isa="neon9")
    cases = [CASES["dsn_evolved_L24"], CASES["stride_2"], other]
    assert suite.run(cases, [2])["rows"] == []
    assert asked == {
        "dsn_evolved_L24": (2, list(RIVALS)),
        "stride_2": (2, ["conv1d", "conv2d_channels_last"]),
    }
    assert "other_isa is left out: this CPU has no neon9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "cases", "more"),
    [
        ([], len(CASES), ["growth", "network"]),
        (["--quick"], len(CASES), ["growth", "network"]),
        (["--suites", "isa"], 3, []),
        (["--suites", "network"], 0, ["network"]),
        (["--suites", "isa", "growth"], 3, ["growth"]),
        (["--cases", "packing"], 1, []),
        (["--cases", "packing", "--suites", "isa", "network"], 4, ["network"]),
    ],
)
def test_what_is_measured(
    words: list[str], cases: int, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, list[str], bool]] = []
    monkeypatch.setattr(bench, "cpp_or_reason", lambda: "")
    monkeypatch.setattr(bench, "shown", lambda document: "")

    def fake(chosen: list[Case], _: object, *, more: list[str], quick: bool, **__: object) -> None:
        asked.append((len(chosen), more, quick))

    monkeypatch.setattr(suite, "run", fake)
    assert main(["bench", *words]) == 0
    assert asked == [(cases, more, "--quick" in words)]


@needs_extension
@pytest.mark.parametrize("quick", [False, True])
def test_each_suite_has_its_rounds(
    quick: bool, monkeypatch: pytest.MonkeyPatch, quick_peaks: None
) -> None:
    asked: dict[str, int] = {}

    def fake(case: Case, *_: object, rounds: int, **__: object) -> list[Any]:
        asked[case.suite] = rounds
        return []

    def fake_growth(quantity: str, *, rounds: int) -> list[Any]:
        asked["growth"] = rounds
        return []

    def tasks(*, threads: list[int], rounds: int, **settings: Any) -> list[compare.Task]:
        assert ("dense_compiled" in settings.get("rivals", compare.RIVALS)) is not quick
        assert ("epoch" in settings.get("modes", compare.MODES)) is not quick
        asked["network"] = rounds
        return []

    monkeypatch.setattr(suite, "measure", fake)
    monkeypatch.setattr(growth, "measure", fake_growth)
    monkeypatch.setattr(compare, "tasks", tasks)
    cases = [CASES["dsn_evolved_L24"], CASES["stride_2"]]
    document = suite.run(cases, [1], more=list(suite.MORE), quick=quick)
    few = dict.fromkeys(asked, suite.QUICK_ROUNDS)
    assert asked == (few if quick else {
        "layer": suite.ROUNDS["layer"], "options": suite.OTHER_ROUNDS,
        "growth": suite.ROUNDS["growth"], "network": compare.ROUNDS,
    })  # fmt: skip
    assert len(asked) == 4
    assert document["complete"]


@needs_extension
@pytest.mark.parametrize("error", [KeyboardInterrupt, run.WrongResultError("wgrad is wrong")])
def test_what_was_measured_before_an_end_is_kept(
    error: type[BaseException] | BaseException, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quick_peaks: None,
) -> None:  # fmt: skip
    row = {"suite": "options", "case": "any", "absent": {}, "density": 1.0, "ratio": {}}

    def fake(case: Case, *_: object, **__: object) -> list[Any]:
        if case.name == "stride_2":
            raise error
        return [row]

    monkeypatch.setattr(suite, "measure", fake)
    out = tmp_path / "rows.json"
    out.write_text("an earlier run")
    words = ["--cases", "pointwise", "stride_2", "dilation_4", "--threads", "1"]
    code = main(["bench", *words, "--json", str(out)])
    assert code == (130 if error is KeyboardInterrupt else 1)
    document = json.loads(out.read_text())
    assert (document["rows"], document["complete"]) == ([row], False)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"what was measured before is in {out}" in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


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
