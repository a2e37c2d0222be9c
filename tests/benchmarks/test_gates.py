"""bench-check: a slowed kernel fails it, an unchanged one passes ten times of ten."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks import compare
from sparseconv.bench.cases import CASES
from sparseconv.bench.run import COMPUTATIONS, WrongResultError
from sparseconv.measure import timing

KEYS = [(f"case {i}", computation) for i in range(4) for computation in COMPUTATIONS]


class FakeSide:
    """Calls of 1 ms times ``factor``, on a machine that now and then stops for a while."""

    def __init__(self, factor: float, seed: int) -> None:
        self.factor, self.rng = factor, np.random.default_rng(seed)
        self.requests: list[tuple[str, str, int]] = []

    def seconds(self, case: str, computation: str, repeats: int) -> float:
        self.requests.append((case, computation, repeats))
        stopped = 5.0 if self.rng.random() < 0.1 else 1.0
        return 1e-3 * self.factor * stopped * float(self.rng.lognormal(0, 0.05))


class FakeTrees:
    """Starts fake sides; ``factors`` are those of the present side at each start."""

    def __init__(self, *factors: float, seed: int = 0) -> None:
        self.factors, self.seed = list(factors), seed
        self.started: list[FakeSide] = []

    @contextmanager
    def __call__(self, *_: object, **__: object) -> Iterator[tuple[FakeSide, FakeSide]]:
        factor = self.factors[min(len(self.started), len(self.factors) - 1)]
        side = FakeSide(factor, 2 * self.seed + 1000 * len(self.started))
        self.started.append(side)
        yield FakeSide(1.0, 2 * self.seed + 1 + 1000 * len(self.started)), side


@pytest.fixture
def nothing_to_collect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting takes 0.1 s per measurement, which fake ones do not need."""
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)


def verdicts(rows: list[compare.Row]) -> set[str]:
    return {row.verdict for row in rows}


@pytest.mark.usefixtures("nothing_to_collect")
@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.25, "slower"), (1.04, "unchanged"), (0.96, "unchanged"), (0.8, "faster")],
)
def test_timing_verdict_follows_the_factor(factor: float, verdict: str) -> None:
    rows = compare.compare(FakeTrees(factor), KEYS)
    assert [(row.case, row.computation) for row in rows] == KEYS
    assert verdicts(rows) == {verdict}
    assert np.median([row.ratio.median for row in rows]) == pytest.approx(factor, rel=0.01)
    assert np.median([row.present / row.base for row in rows]) == pytest.approx(factor, rel=0.01)


@pytest.mark.usefixtures("nothing_to_collect")
def test_unchanged_sides_pass_ten_times_of_ten() -> None:
    for seed in range(10):
        trees = FakeTrees(1.0, seed=seed)
        assert "slower" not in verdicts(compare.compare(trees, KEYS, rounds=20))


@pytest.mark.usefixtures("nothing_to_collect")
def test_a_slowdown_must_show_in_fresh_workers_too() -> None:
    unlucky = FakeTrees(1.3, 1.0)
    assert verdicts(compare.compare(unlucky, KEYS)) == {"unchanged"}
    assert len(unlucky.started) == 2
    constant = FakeTrees(1.3)
    assert verdicts(compare.compare(constant, KEYS)) == {"slower"}
    assert len(constant.started) == 2
    unchanged = FakeTrees(1.0)
    compare.compare(unchanged, KEYS)
    assert len(unchanged.started) == 1


@pytest.mark.usefixtures("nothing_to_collect")
def test_only_what_looks_slower_is_measured_again() -> None:
    class OneSlow(FakeSide):
        def seconds(self, case: str, computation: str, repeats: int) -> float:
            slow = 1.3 if (case, computation) == KEYS[4] else 1.0
            return slow * super().seconds(case, computation, repeats)

    started: list[FakeSide] = []

    @contextmanager
    def sides() -> Iterator[tuple[FakeSide, FakeSide]]:
        started.append(OneSlow(1.0, len(started)))
        yield FakeSide(1.0, 10 + len(started)), started[-1]

    rows = compare.compare(sides, KEYS)
    assert [(row.case, row.computation) for row in rows if row.verdict == "slower"] == [KEYS[4]]
    assert {request[:2] for request in started[0].requests} == set(KEYS)
    assert {request[:2] for request in started[1].requests} == {KEYS[4]}


@pytest.mark.usefixtures("nothing_to_collect")
def test_a_turn_lasts_long_enough() -> None:
    class Exact(FakeSide):
        def seconds(self, case: str, computation: str, repeats: int) -> float:
            self.requests.append((case, computation, repeats))
            return self.factor

    for once, repeats in ((1e-4, 30), (1.0, 1)):
        base, present = Exact(once, 0), Exact(once, 0)
        row = compare.measure(base, present, KEYS[0], rounds=5, seed=0)
        assert row.ratio == (1.0, 1.0, 1.0)
        assert (row.base, row.present) == pytest.approx((once, once))
        for side in (base, present):
            assert side.requests[0] == (*KEYS[0], 1)
            assert {request[2] for request in side.requests[1:]} == {repeats}


# Real workers, on the extension that is built in the tree.

REAL = "first_layer_L128"


@contextmanager
def real_workers(script: Path = compare.WORKER) -> Iterator[tuple[compare.Worker, compare.Worker]]:
    problems = {REAL: CASES[REAL].build()}
    scripts = (compare.WORKER, script)
    with compare.workers(compare.ROOT, compare.ROOT, problems, scripts=scripts) as pair:
        yield pair


def altered_worker(folder: Path, code: str) -> Path:
    """The worker's script, in a process where ``code`` has changed the package."""
    script = folder / "altered.py"
    run = f"import runpy; runpy.run_path({str(compare.WORKER)!r}, run_name='__main__')"
    script.write_text(f"import sparseconv.ops.calls as ops\n{code}\n{run}\n")
    return script


def test_a_slowed_kernel_fails_the_timing_gate_and_no_other_does(tmp_path: Path) -> None:
    twice = "fprop = ops.fprop\nops.fprop = lambda *a: (fprop(*a), fprop(*a))[1]"
    script = altered_worker(tmp_path, twice)
    keys = [(REAL, computation) for computation in COMPUTATIONS]
    rows = compare.compare(lambda: real_workers(script), keys, rounds=25)
    assert {row.computation for row in rows if row.verdict == "slower"} == {"fprop"}, rows
    assert rows[0].ratio.median > 1.5


def test_an_unchanged_kernel_passes_the_timing_gate_ten_times_of_ten() -> None:
    keys = [(REAL, computation) for computation in COMPUTATIONS]
    for _ in range(10):
        rows = compare.compare(real_workers, keys, rounds=15)
        assert "slower" not in verdicts(rows), rows


def test_a_wrong_kernel_is_not_timed(tmp_path: Path) -> None:
    wrong = altered_worker(tmp_path, "dgrad = ops.dgrad\nops.dgrad = lambda *a: dgrad(*a) * 1.001")
    with (
        pytest.raises(WrongResultError, match=f"present, {REAL}: dgrad is wrong"),
        real_workers(wrong),
    ):
        pytest.fail("a wrong kernel was offered for timing")


def test_a_worker_of_another_tree_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(compare.CompareError, match=f"worker of {tmp_path} ended with code 1"),
        compare.workers(tmp_path, compare.ROOT, {REAL: CASES[REAL].build()}),
    ):
        pytest.fail("the base was taken from elsewhere")
    assert f"sparseconv was to come from {tmp_path}" in capfd.readouterr().err


def test_threads_are_checked() -> None:
    with (
        pytest.raises(compare.CompareError, match="threads must be 1 or more, but got 0"),
        compare.workers(compare.ROOT, compare.ROOT, {}, threads=0),
    ):
        pytest.fail("started")


# The two trees.


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three commits: without kernels, with them (tagged ``good``), and one more."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    repo = tmp_path / "repo"
    repo.mkdir()

    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *words], cwd=repo, check=True, capture_output=True)

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "nothing yet")
    git("tag", "empty")
    (repo / "csrc").mkdir()
    (repo / "csrc" / "kernel.cpp").write_text("int one;\n")
    (repo / "setup.py").write_text("raise SystemExit('no compiler in this test')\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "kernels")
    git("tag", "good")
    git("commit", "--quiet", "--allow-empty", "-m", "more")
    monkeypatch.setattr(compare, "ROOT", repo)
    return repo


def leftovers(repo: Path) -> list[str]:
    return compare.git(repo, "worktree", "list").splitlines()[1:]


def test_base_must_be_a_commit_with_kernels(repository: Path, tmp_path: Path) -> None:
    assert compare.resolve(repository, "good") == compare.git(repository, "rev-parse", "good")
    assert compare.resolve(repository, "HEAD~1") == compare.resolve(repository, "good")
    with pytest.raises(compare.CompareError, match=r"no 'nowhere'.*for example BASE=HEAD~1"):
        compare.resolve(repository, "nowhere")
    with pytest.raises(compare.CompareError, match="'empty' has no extension sources"):
        compare.resolve(repository, "empty")
    with pytest.raises(compare.CompareError, match="not a git repository"):
        compare.resolve(tmp_path, "good")


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, SystemExit, ValueError])
def test_worktree_is_gone_however_it_ends(
    repository: Path, error: type[BaseException] | None
) -> None:
    def use() -> None:
        with compare.worktree(repository, compare.resolve(repository, "good")) as tree:
            folders.append(tree.parent)
            assert (tree / "csrc" / "kernel.cpp").read_text() == "int one;\n"
            assert len(leftovers(repository)) == 1
            if error is not None:
                raise error

    folders: list[Path] = []
    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    assert leftovers(repository) == []
    assert not folders[0].exists()


def test_failing_build_shows_why(
    repository: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert compare.main(["good"]) == 2
    shown = capsys.readouterr()
    assert "does not build" in shown.err
    assert "no compiler in this test" in shown.err
    assert leftovers(repository) == []
    # Left out is not built, even if setup.py is content with it.
    (repository / "setup.py").write_text("print('the C++ extension is left out')\n")
    with pytest.raises(compare.CompareError, match="with kernels:\nthe C\\+\\+ extension is left"):
        compare.build(repository, tmp_path / "into")


def runs(pid: int) -> bool:
    """Whether a process does; an ended one that nobody waits for does not."""
    try:
        return "Z (zombie)" not in (Path("/proc") / str(pid) / "status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_interrupted_build_leaves_no_compiler_behind(repository: Path, tmp_path: Path) -> None:
    (repository / "setup.py").write_text(
        "import pathlib, signal, subprocess, sys\n"
        # As ninja starts its compilers, and ends them.
        "child = subprocess.Popen(['sleep', '600'], process_group=0)\n"
        "signal.signal(signal.SIGTERM, lambda *_: (child.kill(), sys.exit(1)))\n"
        f"pathlib.Path({str(tmp_path / 'part')!r}).write_text(str(child.pid))\n"
        f"pathlib.Path({str(tmp_path / 'part')!r}).rename({str(tmp_path / 'pid')!r})\n"
        "child.wait()\n"
    )

    def interrupt(*_: object) -> None:
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 0.05)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            compare.build(repository, tmp_path / "into")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    pid, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 60
    while runs(pid):  # the signal is on its way
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("factor", "code", "word"), [(1.0, 0, "unchanged"), (1.3, 1, "slower")])
def test_the_command_fails_for_slower_kernels_only(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    factor: float,
    code: int,
    word: str,
) -> None:
    built: list[Path] = []
    monkeypatch.setattr(compare, "build", lambda tree, into: built.append(tree) or into)
    monkeypatch.setattr(compare, "workers", FakeTrees(factor))
    assert compare.main(["good", "--cases", "dsn_prefix_L24"]) == code
    shown = capsys.readouterr().out
    assert len(built) == 2
    assert built[0] != built[1] == repository
    assert shown.count(f"{word} |") == 3
    assert ("3 of 3 became slower by over 10%" in shown) == (code == 1)
    assert "uncommitted" not in shown
    assert leftovers(repository) == []
    (repository / "new").write_text("")
    assert compare.main(["good", "--cases", "dsn_prefix_L24", "--rounds", "5"]) in (0, 1)
    assert "with uncommitted changes" in capsys.readouterr().out


def test_wide_intervals_are_pointed_out(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = compare.Row("case", "fprop", 1.0, 1.0, timing.Estimate(1.0, 0.7, 1.3))
    monkeypatch.setattr(compare, "build", lambda tree, into: into)
    monkeypatch.setattr(compare, "compare", lambda *_, **__: [row])
    assert compare.main(["good"]) == 0
    assert "1 intervals reach beyond 1.10" in capsys.readouterr().out


def test_interruption_is_said(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "build", interrupted)
    assert compare.main(["good"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert leftovers(repository) == []
