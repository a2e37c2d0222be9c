"""Mutation testing: the changes that are made, what a run of the tests says, and a stop."""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import mutant_tree, mutants
from benchmarks.mutant_tree import MutantsError, Run, Tree, verdict
from benchmarks.mutations import Mutation, identity, mutations

PYTHON = '''
def f(a: int | None, b=1):
    """Adds 1 + 1."""
    if a < b and not g(a, b):
        raise ValueError(f"{a + 1} is no {b}")
    x: dict[int, str] = {}
    self.total += a * b
    touch(a)  # 1 + 1
    return True if a is None else b
'''
# In the order in which they stand.
PYTHON_CHANGED = [
    ("1", "2"), ("<", "<="), ("and", "or"), ("not ", ""), ("a, b", "b, a"),
    ('raise ValueError(f"{a + 1} is no {b}")', "pass"), ("self.total += a * b", "pass"),
    ("+=", "-="), ("*", "+"), ("touch(a)", "pass"), ("True", "False"), ("is", "is not"),
]  # fmt: skip

CPP = """
#include <a>  // 1 + 1
template <int n = 3>
static void f(const T* x, int64_t n) {
  TORCH_CHECK(n >= 0 && n, "at least ", n + 1, " of ", g(n));
  for (int64_t i = 0; i < n; ++i) {
    y.out[i] = min_of(x[i], 2) * n;
    __builtin_prefetch(x + 16);
    run(n, i);
  }
  const int64_t z = !n ? 0.5 : kMost + 'a';
}
"""
CPP_CHANGED = [
    ('TORCH_CHECK(n >= 0 && n, "at least ", n + 1, " of ", g(n))', ""),
    (">=", ">"), ("0", "1"), ("&&", "||"), ("0", "1"), ("<", "<="),
    ("y.out[i] = min_of(x[i], 2) * n", ""), ("min_of", "max_of"), ("2", "3"), ("*", "+"),
    ("run(n, i)", ""), ("n, i", "i, n"), ("!", ""), ("+", "-"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [("a.py", PYTHON, PYTHON_CHANGED), ("a.cpp", CPP, CPP_CHANGED)],
)
def test_the_changes_of_a_source(file: str, source: str, expected: list[tuple[str, str]]) -> None:
    found = mutations(file, source)
    assert sorted((source[m.start : m.end], m.new) for m in found) == sorted(expected)
    assert len({identity(m, source) for m in found}) == len(found)
    if file.endswith(".py"):
        for mutation in found:
            ast.parse(mutation.applied(source))


def test_a_name_stays_while_other_lines_change() -> None:
    before = "a = b + 1\na = b + 1\n"
    after = "c = 0\n\na = b + 1\nif c:\n    a = b + 1\n"
    names = [[identity(m, s) for m in mutations("a.py", s)] for s in (before, after)]
    assert len(set(names[0])) == 4
    assert set(names[0]) < set(names[1])


def test_every_file_has_its_changes_and_its_tests() -> None:
    for file, tests in mutants.FILES.items():
        source = (mutants.ROOT / file).read_text(encoding="utf-8")
        assert len(mutations(file, source)) >= 20, file
        for test in tests:
            assert (mutants.ROOT / "tests" / test).exists(), test


def test_a_sample_is_the_same_when_more_are_drawn() -> None:
    files = ["sparseconv/pattern.py", "csrc/cpu/plan.cpp"]
    few, many = (mutants.sample(mutants.ROOT, files, n, seed=3) for n in (10, 60))
    assert many[:10] == few
    assert {m.file for _, m in many} == set(files)
    assert mutants.sample(mutants.ROOT, files, 10, seed=4) != few


SOURCE = """
def largest(values):
    best, i = values[0], 0
    while i < len(values):
        best = max(best, values[i])
        i += 1
    return best
"""
TESTS = """
from toy import largest

def test_largest():
    assert largest([1, 3, 2]) == 3
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    source = tmp_path / "source"
    (source / "tests").mkdir(parents=True)
    (source / "toy.py").write_text(SOURCE)
    (source / "tests" / "test_toy.py").write_text(TESTS)
    (source / ".gitignore").write_text("ignored\n")
    (source / "ignored").touch()
    subprocess.run(["git", "init", "-q"], cwd=source, check=True)
    monkeypatch.setattr(mutant_tree, "TEST_LIMIT", 2)
    return Tree(source, tmp_path / "copy", {"toy.py": ("test_toy.py",)})


def test_killed_survived_hung_or_no_code_at_all(tree: Tree) -> None:
    tree.prepare()
    assert not (tree.root / "ignored").exists()
    expected = {
        ("0", "1", 0): Run("survived"),  # of values[0]: 1 is not the largest
        ("<", "<=", 0): Run("killed", "tests/test_toy.py::test_largest"),
        ("i += 1", "pass", 0): Run("timeout", "test_toy.py::test_largest"),
    }
    for (old, new, nth), run in expected.items():
        found = [
            m for m in mutations("toy.py", SOURCE) if (SOURCE[m.start : m.end], m.new) == (old, new)
        ]
        assert tree.judge(found[nth]) == run
        assert (tree.root / "toy.py").read_text() == SOURCE, "it is changed back"
    assert tree.judge(Mutation("toy.py", 0, 1, "none", "?")) == Run("invalid", "does not compile")


def test_a_changed_kernel_is_compiled_and_then_forgotten(tree: Tree) -> None:
    (tree.root / "csrc" / "cpu").mkdir(parents=True)
    (tree.root / "sparseconv").mkdir()
    (tree.root / "csrc" / "cpu" / "limit.h").write_text("static const int kLimit = 3;\n")
    kernel = """
#include "cpu/limit.h"
extern "C" int below(int n) {
  return n < kLimit && 1 < 2;
}
"""
    (tree.root / "csrc" / "toy.cpp").write_text(kernel)
    (tree.root / "tests" / "test_toy.py").write_text("""
import ctypes, pathlib
extension = ctypes.CDLL(next(pathlib.Path("sparseconv").glob("_C*.so")))

def test_below():
    assert [extension.below(n) for n in (2, 3, 4)] == [1, 0, 0]
""")
    files = ("csrc/toy.cpp", "csrc/cpu/limit.h", "toy.py")
    tree.files = dict.fromkeys(files, ("test_toy.py",))
    tree.compiler, tree.units = ["c++", "-O3"], [tree.root / "csrc" / "toy.cpp"]
    tree.prepare()
    at = kernel.index("<")
    killed = Run("killed", "tests/test_toy.py::test_below")
    assert tree.judge(Mutation("csrc/toy.cpp", at, at + 1, "", "<=")) == killed
    assert tree.judge(Mutation("toy.py", 0, 0, "", "# no change")) == Run("survived")
    assert tree.judge(Mutation("csrc/cpu/limit.h", 26, 27, "", "4")) == killed
    at = kernel.index("1 < 2")
    same = Run("equivalent", "compiles to the same code")
    assert tree.judge(Mutation("csrc/toy.cpp", at, at + 1, "", "0")) == same
    assert tree.judge(Mutation("csrc/toy.cpp", at, at, "", "?")).outcome == "invalid"
    assert tree.judge(Mutation("toy.py", 0, 0, "", "# no change")) == Run("survived")


def test_a_suite_that_fails_by_itself_judges_nothing(tree: Tree) -> None:
    (tree.root / "tests" / "test_toy.py").write_text(TESTS.replace("== 3", "== 2"))
    with pytest.raises(MutantsError, match=r"before anything is changed.*test_largest"):
        tree.prepare()


def test_verdicts() -> None:
    assert verdict(0, "1 passed") == Run("survived")
    assert verdict(1, "\nFAILED tests/a.py::b - 1\nFAILED c") == Run("killed", "tests/a.py::b")
    assert verdict(2, "ERROR tests/a.py - ImportError") == Run("killed", "tests/a.py")
    assert verdict(-11, "") == Run("killed", "the tests ended with code -11")
    assert verdict(1, "Timeout (0:01:00)!") == Run("timeout", "60 s")


def test_a_campaign_goes_on_after_a_stop_and_retries_survivors(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("a = b + 1\nc = 2\n")
    chosen = mutants.sample(tmp_path, ["a.py"], 9, seed=0)
    results = tmp_path / "results" / "mutants.json"
    judged: list[str] = []

    def judge(outcome: str, stop_after: int = 9) -> Callable[[Mutation], Run]:
        def call(mutation: Mutation) -> Run:
            if len(judged) == stop_after:
                raise KeyboardInterrupt
            judged.append(mutation.new)
            return Run(outcome, "x")

        return call

    with pytest.raises(KeyboardInterrupt):
        mutants.campaign(tmp_path, chosen, judge("survived", 2), results, {"seed": 0})
    assert len(json.loads(results.read_text())["mutants"]) == 2
    content = mutants.campaign(tmp_path, chosen, judge("killed"), results, {"seed": 0})
    assert json.loads(results.read_text()) == content
    assert len(judged) == len(set(judged)) == 3
    assert sorted(row["outcome"] for row in content["mutants"]) == [
        "killed",
        "survived",
        "survived",
    ]
    assert [row["line"] for row in content["mutants"]] == [1, 1, 2]
    judged.clear()
    content = mutants.campaign(tmp_path, chosen, judge("killed"), results, {}, retry=True)
    assert len(judged) == 2
    assert [row["outcome"] for row in content["mutants"]] == ["killed"] * 3
