"""bench-check: what became slower fails it, and an unchanged tree passes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench.cases import CASES
from benchmarks.bench.run import WrongResultError
from benchmarks.gates import compare, rows, worker
from sparseconv.measure import timing


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


@pytest.mark.parametrize("factors", [(1.0,), (1.3, 1.0), (1.3,)])
@pytest.mark.parametrize("seed", range(3))
def test_the_command_fails_for_what_is_slower_in_fresh_workers_too(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], factors: tuple[float, ...], seed: int,
) -> None:  # fmt: skip
    built: list[Path] = []
    sides, code = FakeTrees(*factors, seed=seed), int(factors == (1.3,))
    monkeypatch.setattr(compare, "build", lambda tree, into: built.append(tree) or into)
    monkeypatch.setattr(compare, "workers", sides)
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps([MINE]))
    words = ["--cases", str(cases), "--steps", "24", "512"]
    assert compare.main([*words, "--", "HEAD"]) == code
    shown = capsys.readouterr().out
    assert len(built) == 2
    assert built[0] != built[1] == repository
    assert shown.count("slower |" if code else "unchanged |") == 3 + 2
    assert sides.started == (1 if factors == (1.0,) else 2)
    assert ("5 of 5 became slower by more than 10%" in shown) == (code == 1)
    assert len(compare.output(repository, "git", "worktree", "list").splitlines()) == 1


def real() -> rows.Row:
    return rows.layer(CASES["first_layer_L128"])


# A tree's package: this one, which is slow, and wrong if FACTOR says so.
ALTERED = f"""
import os, sys, time
del sys.modules["sparseconv"]
sys.path.insert(1, {str(compare.ROOT)!r})
sys.path.pop(0)
import sparseconv
sparseconv.__file__ = __file__
convolve, factor = sparseconv.sparse_conv1d, float(os.environ.get("FACTOR", 1))
sparseconv.sparse_conv1d = lambda x, v, *rest, **options: (
    convolve(x, factor * v, *rest, **options), time.sleep(0.02)
)[0]
"""


@pytest.mark.parametrize("make", [real, lambda: rows.layer(rows.TINY), lambda: rows.step(8)])
def test_what_a_worker_computes_is_checked(make: Callable[[], rows.Row]) -> None:
    row = make()
    calls = worker.KINDS[row.kind](**row.data)
    assert tuple(calls) == row.computations
    results = {name: calls[name]().detach() for name in row.computations if "compiled" not in name}
    row.check(results)
    with pytest.raises(WrongResultError, match="is wrong"):
        row.check({name: 1.001 * result for name, result in results.items()})


def test_workers_time_what_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sparseconv").mkdir()
    (tmp_path / "sparseconv" / "__init__.py").write_text(ALTERED)
    row = real()
    with compare.workers(compare.ROOT, tmp_path, [row], threads=2) as sides:
        fast, slow = (side.seconds(row.name, "fprop", 2) for side in sides)
        assert fast > 0
        assert slow > 0.02
    monkeypatch.setenv("FACTOR", "1.001")
    with (
        pytest.raises(WrongResultError, match=f"present, {row.name}: .*fprop is wrong"),
        compare.workers(compare.ROOT, tmp_path, [row]),
    ):
        pytest.fail("a wrong result was offered for timing")
