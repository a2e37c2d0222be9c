"""No op reads or writes outside its buffers, whatever its arguments; each runs in a child process.

Beside pages that may not be touched, under AddressSanitizer and UndefinedBehaviorSanitizer, on
tensors whose offsets no int32 holds, with wrong arguments, and from damaged files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from child import PYTHONPATH, ROOT, preloaded, run_child

from sparseconv.ops.backends import extension

pytestmark = pytest.mark.skipif(extension is None, reason="the C++ extension is not built")

COMPILER = os.environ.get("CXX", "c++")
SANITIZE = "-fsanitize=address,undefined -fno-sanitize=vptr"


@pytest.mark.promise("P5")
@pytest.mark.promise("P6")
def test_inputs_flush_against_guard_pages(campaign: Any, count_cases: Any) -> None:
    # Fresh memory holds junk, so a result made of unwritten memory shows.
    found = run_child("guarded", 0, campaign(60, 5_000), environment={"MALLOC_PERTURB_": "85"})
    assert found["faults"] == []
    count_cases(found["calls"])


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process whose extension is built under the sanitizers."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed")
    folder = tmp_path_factory.mktemp("sanitized")
    flags = {
        "CFLAGS": f"{SANITIZE} -fno-sanitize-recover=all", "LDFLAGS": SANITIZE,
        "SPARSECONV_CXXFLAGS": "-O1 -g1",  # -O3 takes gcc many minutes with so many checks
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder),
         "--build-temp", str(folder / "objects")],
        cwd=ROOT, env={**os.environ, **flags, "FORCE_CUDA": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert list((folder / "sparseconv").glob("_C*")), done.stderr[-4000:]
    shutil.copytree(
        ROOT / "sparseconv", folder / "sparseconv", dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("_C*"),
    )  # fmt: skip
    return {
        "PYTHONPATH": os.pathsep.join([str(folder), PYTHONPATH]),
        **preloaded(COMPILER),
    }


SLOW_BUILD = pytest.mark.campaign("builds the extension for minutes")


@SLOW_BUILD
@pytest.mark.promise("P5")
def test_under_the_sanitizers(
    sanitized: dict[str, str],
    campaign: Any,
    count_cases: Any,
) -> None:
    found = run_child("guarded", 100_000, campaign(100, 5_000), environment=sanitized)
    assert found["extension"].startswith(sanitized["PYTHONPATH"].split(os.pathsep)[0])
    assert found["faults"] == []
    count_cases(found["calls"])


@SLOW_BUILD
def test_one_byte_too_many_on_the_heap_is_noticed(sanitized: dict[str, str]) -> None:
    code = "import ctypes, torch; ctypes.string_at(torch.zeros(5).data_ptr(), 5 * 4 + 1)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | sanitized,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "heap-buffer-overflow" in done.stderr


LARGE = pytest.mark.campaign("needs 5 GB of memory and a minute")
ITEMS = ("fprop", "dgrad", "wgrad", "bytes")


@pytest.mark.promise("P5")
@pytest.mark.promise("P6")
@pytest.mark.parametrize("what", ["offsets", *(pytest.param(x, marks=LARGE) for x in ITEMS)])
def test_more_than_an_int32_counts(what: str, tmp_path: Path, count_cases: Any) -> None:
    found = run_child("large_strides", what, tmp_path)
    assert found["faults"] == []
    count_cases(found["calls"])


@pytest.mark.promise("P5")
def test_scratch_memory_that_cannot_be_had_is_refused() -> None:
    kind, says = run_child("no_memory")
    assert kind == "RuntimeError"
    # Tiles of 30 rows of 64 bytes for the taps, 8 sums, and 16 rows to transpose.
    assert says == f"could not allocate {64 * (30 * 2**19 + 8 + 16)} bytes of scratch memory"


@pytest.mark.promise("P5")
def test_every_wrong_argument_of_every_op(campaign: Any, count_cases: Any) -> None:
    found = run_child("wrong_arguments", 0, campaign(5_000, 100_000))
    assert found["faults"] == []
    count_cases(found["calls"])
    assert found["calls"] > 5_000


@pytest.mark.promise("P5")
def test_every_wrong_argument_of_a_plan_of_random_kernels(campaign: Any, count_cases: Any) -> None:
    found = run_child("wrong_plans", 0, campaign(2_000, 100_000))
    assert found["faults"] == []
    count_cases(found["calls"])


@pytest.mark.promise("P5")
def test_what_is_damaged_loads_or_is_refused(
    tmp_path: Path, campaign: Any, count_cases: Any
) -> None:
    cases = {
        "patterns": campaign(300, 50_000), "states": campaign(150, 20_000),
        "checkpoints": campaign(40, 10_000), "banks": campaign(500, 50_000),
    }  # fmt: skip
    found = run_child("mutations", tmp_path, *cases.values())
    assert found["faults"] == []
    for kind, refused in found["refused"].items():
        assert min(refused, cases[kind] - refused) > cases[kind] / 20, f"one hardly ran: {kind}"
    count_cases(sum(cases.values()))


@pytest.mark.promise("P5")
def test_more_numbers_than_an_int32_counts_are_no_bank() -> None:
    ones = torch.ones(1, dtype=torch.int32)
    many = torch.ones(1).expand(2**30 + 1)  # in the memory of one
    with pytest.raises(ValueError, match=r"weights must have at most 1073741824 elements"):
        extension.RocketPlan(9 * ones, ones, 0 * ones, torch.zeros(1), ones, 0 * ones, many, 1, 50)
