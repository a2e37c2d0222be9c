"""bench-check: what became slower fails it, an unchanged tree passes ten times of ten."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gates import compare, rows, trees
from benchmarks.gates.trees import CompareError
from sparseconv.measure import timing

KEYS = [(f"row {i}", computation) for i in range(4) for computation in ("fprop", "dgrad", "wgrad")]


class FakeSide:
    """Calls of 1 ms times ``factor``, on a machine that now and then stops for a while."""

    def __init__(self, factor: float, seed: int, slow: tuple[str, str] | None = None) -> None:
        self.factor, self.slow, self.rng = factor, slow, np.random.default_rng(seed)
        self.requests: list[tuple[str, str, int]] = []

    def seconds(self, row: str, computation: str, repeats: int) -> float:
        self.requests.append((row, computation, repeats))
        stopped = 5.0 if self.rng.random() < 0.1 else 1.0
        slower = 1.3 if (row, computation) == self.slow else 1.0
        return 1e-3 * self.factor * slower * stopped * float(self.rng.lognormal(0, 0.05))


class FakeTrees:
    """Starts fake sides; ``factors`` are those of the present side at each start."""

    def __init__(self, *factors: float, seed: int = 0, slow: tuple[str, str] | None = None) -> None:
        self.factors, self.seed, self.slow = factors, seed, slow
        self.started: list[FakeSide] = []

    @contextmanager
    def __call__(self, *_: object, **__: object) -> Iterator[tuple[FakeSide, FakeSide]]:
        n = len(self.started)
        factor = self.factors[min(n, len(self.factors) - 1)]
        self.started.append(FakeSide(factor, 1000 * n + 2 * self.seed, self.slow))
        yield FakeSide(1.0, 1000 * n + 2 * self.seed + 1), self.started[-1]


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting takes 0.1 s per measurement, which fake ones do not need."""
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)


def slower(results: list[compare.Result], limit: float = compare.LIMIT) -> list[tuple[str, str]]:
    return [result[:2] for result in results if result.verdict(limit) == "slower"]


@pytest.mark.parametrize(
    ("factor", "limit", "verdict"),
    [
        (1.25, 1.1, "slower"),
        (1.04, 1.1, "unchanged"),
        (0.96, 1.1, "unchanged"),
        (0.8, 1.1, "faster"),
        (1.08, 1.03, "slower"),
    ],
)
def test_the_verdict_follows_the_factor(factor: float, limit: float, verdict: str) -> None:
    rounds = compare.ROUNDS if limit == compare.LIMIT else 200  # as CONTRIBUTING has it
    results = compare.compare(FakeTrees(factor), KEYS, rounds=rounds, limit=limit)
    assert [result[:2] for result in results] == KEYS
    assert {result.verdict(limit) for result in results} == {verdict}
    assert np.median([result.ratio.median for result in results]) == pytest.approx(factor, rel=0.01)
    assert np.median([r.present / r.base for r in results]) == pytest.approx(factor, rel=0.01)


def test_unchanged_sides_pass_ten_times_of_ten() -> None:
    for seed in range(10):
        assert not slower(compare.compare(FakeTrees(1.0, seed=seed), KEYS, rounds=20))


@pytest.mark.parametrize("factors", [(1.3, 1.0), (1.3,)])
def test_a_slowdown_must_show_in_fresh_workers_too(factors: list[float]) -> None:
    sides = FakeTrees(*factors)
    assert bool(slower(compare.compare(sides, KEYS))) == (factors == (1.3,))
    assert len(sides.started) == 2


# A user's own layers.

MINE = {"name": "mine", "in_channels": 4, "out_channels": 6, "kernel_size": 5, "length": 30,
        "density": 0.2}  # fmt: skip


def written(folder: Path, content: Any) -> Path:
    path = folder / "cases.json"
    path.write_text(json.dumps(content))
    return path


def test_own_layers_are_read(tmp_path: Path) -> None:
    other = {"name": "other", "n": 2, "padding": [4, 0], "groups": 2, "dtype": "float64"}
    first, second = map(rows.layer, rows.read_layers(written(tmp_path, [MINE, MINE | other])))
    assert (first.name, second.name) == ("mine", "other")
    assert (first.data["x"].shape, second.data["x"].shape) == ((16, 4, 30), (2, 4, 30))
    assert second.data["mask"].shape == (6, 2, 5)
    assert second.data["options"]["padding"] == (4, 0)
    with pytest.raises(CompareError, match=r"entry 1: .*'kernel'"):
        rows.read_layers(written(tmp_path, [MINE, MINE | {"kernel": 3}]))


# The two trees.


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits, of which ``good`` is the first; neither builds."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "setup.py").write_text("raise SystemExit('no compiler in this test')\n")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    for words in (
        ("init", "--quiet"),
        ("add", "."),
        (*identity, "commit", "--quiet", "-m", "kernels"),
        (*identity, "tag", "good"),
        (*identity, "commit", "--quiet", "--allow-empty", "-m", "more"),
    ):
        subprocess.run(["git", *words], cwd=repo, check=True, capture_output=True)
    monkeypatch.setattr(compare, "ROOT", repo)
    return repo


def leftovers(repo: Path) -> list[str]:
    return trees.git(repo, "worktree", "list").splitlines()[1:]


def test_the_worktree_is_gone_after_an_interruption(repository: Path) -> None:
    folders = []

    def interrupted() -> None:
        with trees.worktree(repository, "good") as tree:
            folders.append(tree)
            assert (tree / "setup.py").exists()
            assert len(leftovers(repository)) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert leftovers(repository) == []
    assert not folders[0].parent.exists()


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("nowhere", "rev-parse --verify --end-of-options nowhere"),
        ("--force", "rev-parse --verify --end-of-options --force"),
        ("good", "no compiler in this"),
    ],
)
def test_a_base_that_is_missing_or_does_not_build(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], base: str, says: str
) -> None:
    words = ["--cases", str(written(tmp_path, [MINE]))]
    assert compare.main([*words, "--", base]) == 2
    assert says in capsys.readouterr().err
    assert leftovers(repository) == []


@pytest.mark.parametrize(("factor", "code", "word"), [(1.0, 0, "unchanged"), (1.3, 1, "slower")])
def test_the_command_fails_for_what_became_slower_only(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], factor: float, code: int, word: str,
) -> None:  # fmt: skip
    built: list[Path] = []
    monkeypatch.setattr(compare, "build", lambda tree, into: built.append(tree) or into)
    monkeypatch.setattr(compare, "workers", FakeTrees(factor))
    words = ["--cases", str(written(tmp_path, [MINE])), "--steps", "24", "512"]
    assert compare.main([*words, "--", "good"]) == code
    shown = capsys.readouterr().out
    assert len(built) == 2
    assert built[0] != built[1] == repository
    assert shown.count(f"{word} |") == 3 + 2
    assert ("5 of 5 became slower by over 10%" in shown) == (code == 1)
    assert leftovers(repository) == []
