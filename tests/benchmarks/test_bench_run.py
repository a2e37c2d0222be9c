"""Cases are checked in the run that times them; what the command prints and writes follows."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_banks import Problem as Kernels
from torch import Tensor

from benchmarks import readme, recording
from benchmarks.bench import command as bench
from benchmarks.bench import networks, peaks, random_kernels, run, tables
from benchmarks.bench.baselines import BASELINES, Calls
from benchmarks.bench.cases import CASES, Case, Problem, layer_problem
from sparseconv.cli.main import main
from sparseconv.measure import timing
from sparseconv.models import DSN
from sparseconv.rocket.bank import KINDS, KernelBank

TINY = Case(2, 3, 4, 5, 20, padding=2, name="tiny", suite="layer")


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (run, random_kernels):
        monkeypatch.setattr(module, "TURN", 1e-4)


@pytest.fixture(scope="module")
def small() -> Problem:
    torch.manual_seed(0)
    model = DSN(1, 2, nf=5, kernel_size=9, depth=2)
    return layer_problem(model.sparse_layers()[1], batch=3, length=20)


def spoilt(name: str, fault: Callable[[Tensor], Tensor], problem: Problem) -> Calls:
    calls = run.public_calls(problem)
    return calls | {name: lambda: fault(calls[name]())}


each_fault = pytest.mark.parametrize(
    "fault",
    [
        lambda r: r.index_fill(-1, torch.tensor(0), 0.0),  # one output of a series
        lambda r: r * float("nan"),
        lambda r: r[..., :1],
    ],
)


@pytest.mark.parametrize("name", run.COMPUTATIONS)
@each_fault
def test_check_refuses_a_wrong_kernel(
    small: Problem, name: str, fault: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(run.WrongResultError, match=f"{name} is wrong"):
        run.check(small, partial(spoilt, name, fault))


@pytest.mark.parametrize("name", run.COMPUTATIONS)
def test_a_missing_term_does_not_hide_inside_the_bound_of_a_long_sum(name: str) -> None:
    """Without the last sample of the last series, a sum of 40 000 terms hardly changes."""

    def wrong(problem: Problem) -> Calls:
        read = "x" if name == "fprop" else "grad"
        tensor = getattr(problem, read).clone()
        tensor[-1, :, -1] = 0
        less = run.public_calls(problem._replace(**{read: tensor}))
        return run.public_calls(problem) | {name: less[name]}

    problem = replace(TINY, n=16, length=2500).build()
    with pytest.raises(run.WrongResultError, match=f"{name} is wrong"):
        run.check(problem, wrong)


OF = {name: set(run.COMPUTATIONS) for name in BASELINES} | {"fft_prepared": {"fprop", "dgrad"}}
# Every option, pattern and dtype; the other suites vary sizes.
SOME = [case.name for case in CASES.values() if case.suite in ("options", "adversarial", "trained")]


def shrunk(case: Case, outputs: int) -> Case:
    """The same case on fewer and shorter series."""
    surplus = max(0, (case.output_length - outputs) * case.stride)
    return replace(case, n=min(case.n, 2), length=max(1, case.length - surplus))


@pytest.mark.parametrize("name", [*SOME, "float64", "uci_HAR_dense"])
def test_every_baseline_is_right_on_every_kind_of_case(name: str) -> None:
    problem = shrunk(CASES[name], outputs=24).build()
    wanted = run.exact_results(problem)
    for baseline in BASELINES:
        right, absent = run.checked_baseline(baseline, problem, wanted)
        before, after = problem.geometry.padding
        two_ways = problem.geometry.padding_mode == "zeros" and before == after > 0
        computations = OF[baseline] if two_ways or not baseline.endswith("_padded") else set()
        assert set(right) == computations, (baseline, absent)


@pytest.mark.parametrize(("name", "computation"), [("conv1d", "dgrad"), ("fft_prepared", "fprop")])
@each_fault
def test_a_wrong_baseline_is_left_out_with_the_reason(
    name: str, computation: str, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, strided = BASELINES[name], shrunk(CASES["stride_2"], outputs=16).build()

    def wrong(problem: Problem) -> Calls:
        calls = right(problem)
        call = calls[computation]
        return calls | {computation: lambda: fault(call())}

    monkeypatch.setitem(BASELINES, name, wrong)
    calls, absent = run.checked_baseline(name, strided, run.exact_results(strided))
    assert set(calls) == OF[name] - {computation}
    assert set(absent) == {computation}
    assert "wrong" in absent[computation]


def test_rows_follow_from_the_measured_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine twice as slow at the end; conv1d takes four times as long as the kernels."""

    def fake(
        calls: dict[str, Callable[[], Tensor]], *, rounds: int, least_seconds: float
    ) -> timing.Times:
        for call in calls.values():
            call()
        slower = np.linspace(1, 2, rounds)
        taken = {"sparse": 1e-3, "conv1d": 4e-3, "fma peak": 0.5}
        return {name: taken[name] * slower for name in calls}

    monkeypatch.setattr(timing, "interleave", fake)
    monkeypatch.setattr(peaks, "loop", lambda dtype: peaks.Loop(lambda: 0.5, 1e9))
    rows = run.measure(1, TINY, baselines=["conv1d"], rounds=9)
    assert [row["computation"] for row in rows] == list(run.COMPUTATIONS)
    nnz = TINY.make_pattern().nnz
    for row in rows:
        assert (row["case"], row["suite"], row["rounds"]) == ("tiny", "layer", 9)
        assert (row["batch"], row["in_channels"], row["out_channels"]) == (2, 3, 4)
        assert row["nnz"] == nnz
        assert row["flops"] == 2 * nnz * 2 * 20
        assert row["dense_flops"] == 2 * 60 * 2 * 20
        assert row["ms"] == pytest.approx({"sparse": 1.5, "conv1d": 6.0})
        assert row["ratio"]["conv1d"] == pytest.approx([4, 4, 4])
        assert row["gflops"] == pytest.approx(1e-9 * row["flops"] / 1.5e-3)
        # 2 GFLOP/s at first, when the kernels took 1 ms, and both half as fast at the end.
        assert row["share_of_peak"] == pytest.approx(1e-9 * row["flops"] / 1e-3 / 2.0)
        assert row["absent"] == {}


def test_peak_memory_of_known_calls() -> None:
    assert peaks.peak_bytes(lambda: torch.zeros(1000)) == 4000
    assert peaks.peak_bytes(lambda: (torch.zeros(1000) + 1).sum()) >= 8000
    assert peaks.peak_bytes(lambda: [torch.zeros(1000).sum() for _ in range(50)]) < 4 * 4000


@pytest.mark.parametrize("kind", KINDS)
def test_random_kernels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Aeons:
        """In the place of aeon's transforms, which take half a minute to compile."""

        def __init__(self, n_kernels: int, **_: int) -> None: ...

        def fit(self, X: object) -> Aeons:
            return self

        def transform(self, X: object) -> None: ...

    bank = Kernels(kind, 6).bank
    monkeypatch.setattr(random_kernels, "KINDS", [kind])
    monkeypatch.setattr(random_kernels, "_aeon", lambda: {kind: Aeons})
    monkeypatch.setattr(KernelBank, "from_aeon", lambda fitted: bank)
    few = {"shapes": [(bank.series_channels, bank.series_length)], "rounds": 3}
    rows = random_kernels.measure(1, **few)
    assert [(r["batch"], r["kept"]) for r in rows] == [(96, 1), (1, 1), (96, 0.4), (96, 0.1)]
    for row in rows:
        assert row["ms"]["sparse"] > 0
        assert ("aeon" in row["ratio"]) == (row["kept"] == 1)
        assert (row["share_of_peak"] is not None) == (kind == "rocket")
    assert tables.table(rows, tables.KERNEL_COLUMNS).markdown().count(kind) == 4
    right = random_kernels.kernel_features
    monkeypatch.setattr(random_kernels, "kernel_features", lambda *a, **k: right(*a, **k) + 0.1)
    with pytest.raises(run.WrongResultError, match="features"):
        random_kernels.measure(1, **few)


# Documents, and the tables that are made of them


def test_everything_that_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = readme.recorded()["network"][0] | {"ratio": {"masked_dense": [4.0, 4.0, 4.0]}}

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
    assert (found["complete"], found["network"]) == (False, [net])  # not every case
    assert found["machine"]["torch"] == torch.__version__
    names = [(row["case"], row["computation"]) for row in found["rows"]]
    assert names == [(case, n) for case in ("stride_2", "wgrad_splits") for n in run.COMPUTATIONS]
    for row in found["rows"]:
        assert all(0 < low <= median <= high for median, low, high in row["ratio"].values())
        assert row["share_of_peak"] > 0
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


def test_what_was_measured_before_an_end_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"suite": "options", "case": "any", "computation": "fprop", "density": 1.0, "ratio": {}}

    def fake(count: int, case: Case, **__: object) -> list[Any]:
        if case.name == "stride_2":
            raise KeyboardInterrupt
        return [row]

    monkeypatch.setattr(bench, "measure", fake)
    out = tmp_path / "rows.json"
    out.write_text("an earlier run")
    words = ["--cases", "pointwise", "stride_2", "dilation_4", "--threads", "1"]
    assert main(["bench", *words, "--json", str(out)]) == 130
    found = json.loads(out.read_text())
    assert (found["rows"], found["complete"]) == ([row], False)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"earlier measurements are in {out}" in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_all_suites_in_all_rounds_are_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "tasks", lambda *_: [("rows", "nothing", list)])
    out = tmp_path / "rows.json"
    for words, complete in (([], True), (["--quick"], False), (["--cases", "packing"], False)):
        assert main(["bench", "--json", str(out), *words]) == 0
        assert recording.read(out)["complete"] == complete


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
