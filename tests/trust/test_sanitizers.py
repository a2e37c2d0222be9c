"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, and beside guard pages.

They are built without torch into tests/trust/kernels_host.cpp, which also compares their results
with exact ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX", "c++")
FLAGS = [
    "-std=c++20",
    "-g1",
    "-ffp-contract=off",
    f"-I{ROOT / 'csrc'}",
    f"-I{ROOT / 'tests' / 'trust'}",
]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# The kernels are slow to compile, the loops that check them slow to run.
SOURCES = {"tests/trust/kernels_host.cpp": "-O2"} | {
    f"csrc/cpu/{name}.cpp": "-O1"
    for name in (
        "isa/baseline", "isa/avx2", "isa/avx512", "isa/dispatch", "layout", "plan", "scratch",
    )
}  # fmt: skip
KERNELS = {"fprop", "fprop_conv1x1", "dgrad", "wgrad", "pointwise", "pointwise_gradient"}
KERNELS |= {"batch_norm_relu", "pool"}
# Of the inputs that share the scratch: an L1 cache of 48 KB, and one that holds hardly a channel.
CACHES = (36864, 6000)
PLACES = ("heap", "behind_guard", "before_guard")


def compiled(command: list[str]) -> str:
    """Empty, or what the compiler said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed")
    folder = tmp_path_factory.mktemp("sanitizers")
    (folder / "empty.cpp").write_text("int main() {}\n")
    if compiled([COMPILER, *SANITIZE, "-o", str(folder / "empty"), str(folder / "empty.cpp")]):
        pytest.skip(f"{COMPILER} has no sanitizers")
    objects = []
    for source, level in SOURCES.items():
        objects.append(str(folder / f"{Path(source).stem}.o"))
        command = [COMPILER, *FLAGS, *SANITIZE, level, "-c", str(ROOT / source), "-o", objects[-1]]
        assert not (errors := compiled(command)), errors
    assert not (errors := compiled([COMPILER, *SANITIZE, *objects, "-o", str(folder / "host")]))
    return folder / "host"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.promise("P5")
@pytest.mark.promise("P2")
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("place", PLACES)
def test_random_problems_in_memory_of_their_size(
    program: Path,
    place: str,
    cache: int,
    campaign: Callable[[int, int], int],
    count_cases: Callable[[int], None],
) -> None:
    cases = campaign(200, 20_000)
    done = run(program, 1 + cases * CACHES.index(cache), cases, place, cache)
    assert done.returncode == 0, done.stderr
    computed = dict(line.split() for line in done.stdout.splitlines())
    assert computed.keys() == KERNELS
    count_cases(sum(map(int, computed.values())))


@pytest.mark.parametrize("place", ["heap", "before_guard"])
def test_an_output_that_is_too_short_is_noticed(program: Path, place: str) -> None:
    """By one element of a half type, for one seed or another."""
    done = run(program, 1, 50, place, CACHES[0], 2)
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
    assert "failed; again: kernels_host" in done.stderr
