"""bench-check's workers on this tree's extension: slowed, wrong, or of another tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gates import compare, rows, worker
from benchmarks.gates.trees import CompareError
from sparseconv.bench.cases import CASES
from sparseconv.bench.run import WrongResultError

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
    keys = [(REAL.name, computation) for computation in REAL.computations]
    found = compare.compare(lambda: compare.workers(compare.ROOT, tree, [REAL]), keys, rounds=12)
    assert [result[:2] for result in found if result.verdict(1.1) == "slower"] == [
        (REAL.name, "fprop")
    ], found
    assert found[0].ratio.median > 1.5


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


def test_a_worker_of_another_tree_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(CompareError, match=f"worker of {tmp_path} ended with code 1"),
        compare.workers(tmp_path, compare.ROOT, [REAL]),
    ):
        pytest.fail("the base was taken from elsewhere")
    assert f"sparseconv was to come from {tmp_path}" in capfd.readouterr().err


def test_a_wrong_result_is_not_timed(tmp_path: Path) -> None:
    wrong = "sparseconv.sparse_conv1d = lambda x, v, *a, **k: convolve(x, 1.001 * v, *a, **k)"
    tree = altered_tree(tmp_path, wrong)
    with (
        pytest.raises(WrongResultError, match=f"present, {REAL.name}: .*fprop is wrong"),
        compare.workers(compare.ROOT, tree, [REAL]),
    ):
        pytest.fail("a wrong result was offered for timing")
