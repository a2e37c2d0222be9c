"""No op reads or writes outside its buffers; each test runs in a child process.

Next to pages that may not be touched, under AddressSanitizer and UndefinedBehaviorSanitizer, on
tensors whose offsets no int32 holds, and from damaged files.
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
from child import PYTHONPATH, ROOT, preloaded, refuses, run, run_child
from random_banks import Problem

from sparseconv.ops.backends import extension
from sparseconv.rocket.bank import KINDS

COMPILER = os.environ.get("CXX", "c++")
SANITIZE = "-fsanitize=address,undefined -fno-sanitize=vptr"
needs_compiler = pytest.mark.skipif(not shutil.which(COMPILER), reason=f"no {COMPILER} here")


@needs_compiler
@pytest.mark.promise("P5")
@pytest.mark.promise("P6")
def test_tensors_flush_against_guard_pages(tmp_path: Path, campaign: Any, count_cases: Any) -> None:
    torch_at, guards = Path(torch.__file__).parent, tmp_path / "guards.so"
    source = Path(__file__).with_name("guards.cpp")
    run([COMPILER, "-std=c++20", "-shared", "-fPIC", "-isystem", torch_at / "include", source,
         f"-L{torch_at / 'lib'}", "-lc10", "-o", guards])  # fmt: skip
    found = run_child("guarded", 0, campaign(16, 5_000), guards)
    assert found["faults"] == []
    count_cases(found["calls"])


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process whose extension is built under the sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    flags = {
        "CFLAGS": f"{SANITIZE} -fno-sanitize-recover=all", "LDFLAGS": SANITIZE,
        "SPARSECONV_CXXFLAGS": "-O1 -g1",  # -O3 takes gcc many minutes with these checks
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


@needs_compiler
@pytest.mark.campaign("builds the extension for minutes")
@pytest.mark.promise("P5")
def test_under_the_sanitizers(sanitized: dict[str, str], campaign: Any, count_cases: Any) -> None:
    found = run_child("guarded", 100_000, campaign(100, 5_000), environment=sanitized)
    assert found["extension"].startswith(sanitized["PYTHONPATH"].split(os.pathsep)[0])
    assert found["faults"] == []
    count_cases(found["calls"])


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
def test_what_is_damaged_or_too_large_is_refused_or_computed(
    tmp_path: Path, campaign: Any, count_cases: Any
) -> None:
    cases = {
        "patterns": campaign(120, 50_000), "states": campaign(60, 20_000),
        "checkpoints": campaign(15, 10_000),
    }  # fmt: skip
    found = run_child("mutations", tmp_path, *cases.values())
    assert found["faults"] == []
    for kind, refused in found["refused"].items():
        assert min(refused, cases[kind] - refused) > cases[kind] / 20, f"one hardly ran: {kind}"
    count_cases(sum(cases.values()))


@pytest.mark.promise("P5")
def test_more_numbers_than_an_int32_counts_are_no_bank() -> None:
    ones = torch.ones(1, dtype=torch.int32)
    arrays = {
        "length": 9 * ones, "dilation": ones, "padding": 0 * ones, "bias": torch.zeros(1),
        "n_channels": ones, "channels": 0 * ones,
        "weights": torch.ones(1).expand(2**30 + 1),  # in the memory of one
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"weights must have at most 1073741824 elements"):
        extension.RocketPlan(arrays, 1, 50)


@pytest.mark.promise("P5")
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arrays_make_no_plan_of_random_kernels(kind: str, count_cases: Any) -> None:
    problem, cases = Problem(kind, 2), 0
    plan = extension.RocketPlan if kind == "rocket" else extension.MiniRocketPlan
    arrays = {name: torch.tensor(array) for name, array in problem.bank.arrays.items()}
    x = torch.from_numpy(problem.series)
    out = torch.full((len(x), problem.bank.n_features), torch.nan)
    made = plan(arrays, *x.shape[1:])
    for name, array in arrays.items():
        wrong = [array.double(), array[:-1], array[None], array.to("meta")]
        if not array.is_floating_point():
            wrong += [torch.full_like(array, bad) for bad in (-1, 2**31 - 1, -(2**31))]
        for bad in wrong:
            changed = {**arrays, name: bad}
            assert refuses(lambda changed=changed: plan(changed, *x.shape[1:]))[0]
        fewer = {other: held for other, held in arrays.items() if other != name}
        assert refuses(lambda fewer=fewer: plan(fewer, *x.shape[1:]))[0]
        cases += len(wrong) + 1
    for bad in (x.double(), x[0], x[..., :-1], x.to("meta")):
        assert refuses(lambda bad=bad: made.features(bad, out))[0]
    for bad in (out.double(), out[0], out[:, :-1], out[1:], out.to("meta")):
        assert refuses(lambda bad=bad: made.features(x, bad))[0]
    made.features(x, out)
    assert not out.isnan().any()
    count_cases(cases + 9)
