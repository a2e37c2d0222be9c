"""No op reads or writes outside its buffers, whatever its arguments; each runs in a child process.

Beside pages that may not be touched, under AddressSanitizer and UndefinedBehaviorSanitizer, on
tensors whose offsets no int32 holds, with wrong arguments, and from damaged files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from child import PYTHONPATH, ROOT, preloaded, run_child

from sparseconv.ops.backends import extension

pytestmark = pytest.mark.skipif(extension is None, reason="the C++ extension is not built")

COMPILER = os.environ.get("CXX", "c++")
SANITIZE = "-fsanitize=address,undefined -fno-sanitize=vptr"


@pytest.mark.promise("P5")
@pytest.mark.promise("P6")
def test_inputs_flush_against_guard_pages(
    campaign: Callable[[int, int], int], count_cases: Callable[[int], None]
) -> None:
    # Fresh memory holds junk, so a result that was made from what nobody wrote shows.
    found = run_child("guarded", 0, campaign(300, 5_000), environment={"MALLOC_PERTURB_": "85"})
    assert found["faults"] == []
    count_cases(found["calls"])


def control(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name("guarded.py")), "control"]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_one_byte_too_many_beside_a_guard_page_is_noticed() -> None:
    done = control({})
    assert done.returncode < 0, done.stderr


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
    campaign: Callable[[int, int], int],
    count_cases: Callable[[int], None],
) -> None:
    found = run_child("guarded", 100_000, campaign(100, 5_000), environment=sanitized)
    assert found["extension"].startswith(sanitized["PYTHONPATH"].split(os.pathsep)[0])
    assert found["faults"] == []
    count_cases(found["calls"])


@SLOW_BUILD
def test_one_byte_too_many_on_the_heap_is_noticed(sanitized: dict[str, str]) -> None:
    assert "heap-buffer-overflow" in control({**sanitized, "PLACE": "heap"}).stderr


@pytest.mark.promise("P5")
@pytest.mark.promise("P6")
@pytest.mark.parametrize("what", ["strides", "length"])
def test_offsets_that_no_int32_holds(
    what: str, tmp_path: Path, count_cases: Callable[[int], None]
) -> None:
    found = run_child("large_strides", what, tmp_path)
    assert found["faults"] == []
    count_cases(found["calls"])


@pytest.mark.campaign("needs 5 GB of memory and a minute")
@pytest.mark.promise("P5")
@pytest.mark.parametrize("what", ["fprop", "dgrad", "wgrad", "bytes"])
def test_results_of_more_elements_than_an_int32_counts(
    what: str, tmp_path: Path, count_cases: Callable[[int], None]
) -> None:
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
def test_every_wrong_argument_of_every_op(
    campaign: Callable[[int, int], int], count_cases: Callable[[int], None]
) -> None:
    found = run_child("wrong_arguments", 0, campaign(5_000, 100_000))
    assert found["faults"] == []
    count_cases(found["calls"])
    assert found["calls"] > 5_000


@pytest.mark.promise("P5")
def test_every_wrong_argument_of_a_plan_of_random_kernels(
    campaign: Callable[[int, int], int], count_cases: Callable[[int], None]
) -> None:
    found = run_child("wrong_plans", 0, campaign(2_000, 100_000))
    assert found["faults"] == []
    count_cases(found["calls"])


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("what", "usual", "long"),
    [
        ("patterns", 500, 50_000), ("states", 250, 20_000), ("checkpoints", 40, 10_000),
        ("banks", 1_000, 50_000),
    ],
)  # fmt: skip
def test_what_is_damaged_loads_or_is_refused(
    what: str,
    usual: int,
    long: int,
    tmp_path: Path,
    campaign: Callable[[int, int], int],
    count_cases: Callable[[int], None],
) -> None:
    cases = campaign(usual, long)
    found = run_child("mutations", what, 0, cases, tmp_path)
    assert found["faults"] == []
    assert min(found["refused"], found["loaded"]) > cases / 20, "one of the two hardly ran"
    count_cases(cases)


@pytest.mark.promise("P5")
def test_more_numbers_than_an_int32_counts_are_no_bank() -> None:
    ones = torch.ones(1, dtype=torch.int32)
    many = torch.ones(1).expand(2**30 + 1)  # in the memory of one
    with pytest.raises(ValueError, match=r"weights must have at most 1073741824 elements"):
        extension.RocketPlan(9 * ones, ones, 0 * ones, torch.zeros(1), ones, 0 * ones, many, 1, 50)
