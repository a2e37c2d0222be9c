"""The instruction counts: a gate that a slowed kernel fails and an unchanged one always passes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import counts

CASE = "first_layer_L128"

COUNTABLE = pytest.mark.skipif(bool(counts.missing()), reason=f"no counts: {counts.missing()}")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counts.build(tmp_path_factory.mktemp("counts"))


def altered_kernels(folder: Path, change: Callable[[str], str]) -> Path:
    """The program, with another multiply-add in a copy of the kernels' sources."""
    shutil.copytree(counts.ROOT / "csrc", folder / "csrc")
    header = folder / "csrc" / "cpu" / "vec_avx2.h"
    text = header.read_text()
    fma = "_mm256_fmadd_ps(a.v, b.v, c.v)"
    assert text.count(fma) == 1
    header.write_text(text.replace(fma, change(fma)))
    return counts.build(folder, folder / "csrc")


@COUNTABLE
def test_kernels_execute_as_many_instructions_as_stored(
    program: Path, count_cases: Callable[[int], None]
) -> None:
    version, stored = counts.compiler_version(), counts.stored()
    if version not in stored:
        pytest.skip(f"no counts stored for {version}: python -m benchmarks.counts --write")
    table, found = counts.compare(stored[version], counts.count(program))
    assert found == {"same"}, f"python -m benchmarks.counts tells more:\n{table.markdown()}"
    count_cases(len(table.rows))


@COUNTABLE
def test_unchanged_kernels_are_counted_alike_ten_times_of_ten(program: Path) -> None:
    first = counts.count(program, [CASE])
    assert min(first[CASE].values()) > 100_000
    for _ in range(9):
        assert counts.count(program, [CASE]) == first


@COUNTABLE
def test_a_slowed_kernel_fails_the_count(program: Path, tmp_path: Path) -> None:
    move = '({{ asm volatile("vmovaps %0, %0" : "+x"(c.v)); {}; }})'
    slowed = altered_kernels(tmp_path, move.format)
    _, found = counts.compare(counts.count(program, [CASE]), counts.count(slowed, [CASE]))
    assert found == {"MORE"}


@COUNTABLE
def test_what_computes_something_else_is_not_counted(tmp_path: Path) -> None:
    rounded_twice = altered_kernels(tmp_path, lambda _: "_mm256_mul_ps(a.v, b.v) + c.v")
    with pytest.raises(counts.CountingError, match=f"{CASE} fprop: .* not give the same bits"):
        counts.count(rounded_twice, [CASE])


def test_count_verdicts() -> None:
    assert counts.verdict(1000, 1000) == "same"
    assert counts.verdict(1000, 1020) == counts.verdict(1000, 980) == "same"
    assert counts.verdict(1000, 1021) == "MORE"
    assert counts.verdict(1000, 979) == "fewer"
    assert counts.verdict(None, 1000) == "not stored"


def test_counts_are_stored_and_compared_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = {"case": {"fprop": 1000, "dgrad": 2000, "wgrad": 3000}}
    monkeypatch.setattr(counts, "STORED", tmp_path / "new" / "counts.json")
    monkeypatch.setattr(counts, "missing", lambda: "")
    monkeypatch.setattr(counts, "compiler_version", lambda: "cc 1")
    monkeypatch.setattr(counts, "build", lambda folder: folder)
    monkeypatch.setattr(counts, "count", lambda program: now)
    assert counts.main([]) == 2
    assert "this is cc 1" in capsys.readouterr().err
    assert counts.main(["--write"]) == 0
    assert json.loads(counts.STORED.read_text()) == {"cc 1": now}
    assert counts.main([]) == 0
    capsys.readouterr()
    for changed, text in ((2041, "over 2% more instructions"), (1959, "--write")):
        now = {"case": {"fprop": 1000, "dgrad": changed, "wgrad": 3000}}
        assert counts.main([]) == 1
        shown = capsys.readouterr().out
        assert text in shown
        assert shown.count("same |") == 2
    now = {"case": {"fprop": 1000}, "another": {"fprop": 1}}
    assert counts.main([]) == 1
    assert "not stored" in capsys.readouterr().out
    monkeypatch.setattr(counts, "compiler_version", lambda: "cc 2")
    assert counts.main(["--write"]) == 0
    assert set(counts.stored()) == {"cc 1", "cc 2"}


def test_what_is_missing_for_counting_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(counts.shutil, "which", lambda tool: None if tool == "valgrind" else tool)
    assert counts.main([]) == 2
    assert "nothing was counted: valgrind is not installed" in capsys.readouterr().err


def test_kernels_that_do_not_compile_are_said(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    with pytest.raises(counts.CountingError, match="do not compile for counting"):
        counts.build(tmp_path, tmp_path)
