"""bench-check: what became slower fails it, an unchanged tree passes ten times of ten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench.cases import CASES
from benchmarks.bench.run import WrongResultError
from benchmarks.gates import compare, rows, worker
from sparseconv.measure import timing

KEYS = [(f"row {i}", computation) for i in range(4) for computation in ("fprop", "dgrad", "wgrad")]


class FakeSide:
    """Calls of 1 ms times ``factor``, on a machine that now and then stops for a while."""

    def __init__(self, factor: float, seed: int) -> None:
        self.factor, self.rng = factor, np.random.default_rng(seed)

    def seconds(self, row: str, computation: str, repeats: int) -> float:
        stopped = 5.0 if self.rng.random() < 0.1 else 1.0
        return 1e-3 * self.factor * stopped * float(self.rng.lognormal(0, 0.05))


class FakeTrees:
    """Starts fake sides; ``factors`` are those of the present side at each start."""

    def __init__(self, *factors: float, seed: int = 0) -> None:
        self.factors, self.seed, self.started = factors, seed, 0

    @contextmanager
    def __call__(self, *_: object, **__: object) -> Iterator[tuple[FakeSide, FakeSide]]:
        n = self.started
        self.started += 1
        seed = 1000 * n + 2 * self.seed
        yield FakeSide(1.0, seed + 1), FakeSide(self.factors[min(n, len(self.factors) - 1)], seed)


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting takes 0.1 s per measurement, which fake ones do not need."""
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)


def slower(results: list[compare.Result], limit: float = compare.LIMIT) -> list[tuple[str, str]]:
    return [result[:2] for result in results if result.verdict(limit) == "slower"]


def test_unchanged_sides_pass_ten_times_of_ten() -> None:
    for seed in range(10):
        assert not slower(compare.compare(FakeTrees(1.0, seed=seed), KEYS, rounds=20))


@pytest.mark.parametrize("factors", [(1.3, 1.0), (1.3,)])
def test_a_slowdown_must_show_in_fresh_workers_too(factors: list[float]) -> None:
    sides = FakeTrees(*factors)
    assert bool(slower(compare.compare(sides, KEYS))) == (factors == (1.3,))
    assert sides.started == 2


MINE = {"name": "mine", "in_channels": 4, "out_channels": 6, "kernel_size": 5, "length": 30,
        "density": 0.2}  # fmt: skip


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "kernels").write_text("")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    for words in (["init"], ["add", "."], [*identity, "commit", "-m", "kernels"]):
        compare.output(repo, "git", *words)
    monkeypatch.setattr(compare, "ROOT", repo)
    return repo


@pytest.mark.parametrize(("factor", "code", "word"), [(1.0, 0, "unchanged"), (1.3, 1, "slower")])
def test_the_command_fails_for_what_became_slower_only(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], factor: float, code: int, word: str,
) -> None:  # fmt: skip
    built: list[Path] = []
    monkeypatch.setattr(compare, "build", lambda tree, into: built.append(tree) or into)
    monkeypatch.setattr(compare, "workers", FakeTrees(factor))
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps([MINE]))
    words = ["--cases", str(cases), "--steps", "24", "512"]
    assert compare.main([*words, "--", "HEAD"]) == code
    shown = capsys.readouterr().out
    assert len(built) == 2
    assert built[0] != built[1] == repository
    assert shown.count(f"{word} |") == 3 + 2
    assert ("5 of 5 became slower by more than 10%" in shown) == (code == 1)
    assert len(compare.output(repository, "git", "worktree", "list").splitlines()) == 1


REAL = rows.layer(CASES["first_layer_L128"])


ALTERED = f"""
import sys
del sys.modules["sparseconv"]
sys.path.insert(1, {str(compare.ROOT)!r})
sys.path.pop(0)
import sparseconv
sparseconv.__file__ = __file__
convolve = sparseconv.sparse_conv1d
"""


def altered_tree(folder: Path, code: str) -> Path:
    """A tree with this package, changed by some code."""
    (folder / "sparseconv").mkdir(parents=True)
    (folder / "sparseconv" / "__init__.py").write_text(ALTERED + code)
    return folder


@pytest.mark.serial
def test_a_slowed_computation_fails_and_no_other_does(tmp_path: Path) -> None:
    tree = altered_tree(
        tmp_path,
        "sparseconv.sparse_conv1d = lambda x, v, *a, **k: ("
        "x.requires_grad or v.requires_grad or convolve(x, v, *a, **k), "
        "convolve(x, v, *a, **k))[1]",
    )
    with compare.workers(compare.ROOT, tree, [REAL]) as sides:
        fprop, *others = (
            compare.measure(*sides, (REAL.name, computation), rounds=12, seed=0)
            for computation in REAL.computations
        )
    assert fprop.verdict(1.1) == "slower"
    assert fprop.ratio.median > 1.5
    assert all(result.ratio.median < 1.3 for result in others), others


@pytest.mark.parametrize(
    "row", [REAL, rows.layer(rows.TINY), rows.step(8)], ids=lambda row: row.name
)
def test_what_a_worker_computes_is_checked(row: rows.Row) -> None:
    calls = worker.KINDS[row.kind](**row.data)
    assert tuple(calls) == row.computations
    results = {name: calls[name]().detach() for name in row.computations if "compiled" not in name}
    row.check(results)
    with pytest.raises(WrongResultError, match="is wrong"):
        row.check({name: 1.001 * result for name, result in results.items()})


def test_a_wrong_result_is_not_timed(tmp_path: Path) -> None:
    wrong = "sparseconv.sparse_conv1d = lambda x, v, *a, **k: convolve(x, 1.001 * v, *a, **k)"
    tree = altered_tree(tmp_path, wrong)
    with (
        pytest.raises(WrongResultError, match=f"present, {REAL.name}: .*fprop is wrong"),
        compare.workers(compare.ROOT, tree, [REAL]),
    ):
        pytest.fail("a wrong result was offered for timing")
