"""Installing: versions of Python and torch, and processors without AVX-512 or AVX2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import installing
import pytest

Check = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.promise("P10")
# numpy's OpenBLAS takes an emulated processor for another one and crashes before this package is
# imported; named, it does not.
OPENBLAS = {"OPENBLAS_CORETYPE": "Nehalem"}


@pytest.fixture
def long_run(campaign: Callable[[int, int], int]) -> None:
    if not campaign(0, 1):
        pytest.skip("builds kernels or emulates processors for minutes; make install-matrix does")


@pytest.fixture
def installed_with(long_run: None, tmp_path: Path, count_cases: Callable[[int], None]) -> Check:
    """Build from the source archive with this Python and torch, install it, and let it compute."""

    def install(python: str, torch: str) -> dict[str, Any]:
        base = shutil.which(f"python{python}")
        if base is None or subprocess.run([base, "-c", ""], check=False).returncode:
            pytest.skip(f"Python {python} is not installed")
        sdist = installing.make_sdist(tmp_path)
        source = installing.unpack(sdist, tmp_path / "unpacked")
        installing.run([base, "-m", "venv", tmp_path / "an environment"])
        interpreter = tmp_path / "an environment" / "bin" / "python"
        pip = [interpreter, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        # As the README says, but for the version: torch first, then what builds against it.
        installing.run([*pip, f"torch=={torch}"])
        installing.run([*pip, "numpy>=2.0", "setuptools>=77", "ninja", "pybind11", "wheel"])
        wheel, said = installing.make_wheel(
            source, tmp_path / "wheels", interpreter, FORCE_CUDA="0", MAX_JOBS="1"
        )
        assert "left out" not in said, said[-4000:]
        installing.run([*pip, "--no-deps", "--no-index", wheel])
        result = installing.check([interpreter], 200, cwd=tmp_path)
        count_cases(200 * len(result["isas"]))
        shutil.rmtree(tmp_path / "an environment")  # gigabytes
        assert Path(result["file"]).is_relative_to(tmp_path / "an environment")
        assert result["python"].startswith(python)
        assert result["torch"].startswith(torch)
        assert result["isas"][-1] == "baseline"
        assert result["warnings"] == []
        return result

    return install


@pytest.mark.tool("Python 3.11 with torch 2.10.0, the oldest supported", "works")
def test_the_oldest_torch(installed_with: Check) -> None:
    installed_with("3.11", "2.10.0")


@pytest.mark.tool("Python 3.12 with torch 2.13.0", "works")
def test_the_python_between(installed_with: Check) -> None:
    installed_with("3.12", "2.13.0")


@pytest.mark.tool("Python 3.13 with torch 2.15.0, the newest that exists", "works")
def test_the_newest_torch(installed_with: Check) -> None:
    installed_with("3.13", "2.15.0")


@pytest.mark.tool("Python 3.14 with torch 2.15.0", "works")
def test_the_newest_python(installed_with: Check) -> None:
    installed_with("3.14", "2.15.0")


def bits_on(processor: str, tmp_path: Path) -> dict[str, Any]:
    """Run this tree's kernels on another processor, in emulation."""
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("qemu-user is not installed")
    path = os.pathsep.join([str(installing.ROOT), *filter(None, sys.path)])
    # The emulator takes no links to interpreters with a pyvenv.cfg beside them.
    python = Path(sys.executable).resolve()
    return installing.check(
        [emulator, "-cpu", processor, python], 25, cwd=tmp_path,
        env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **OPENBLAS},
    )  # fmt: skip


@pytest.mark.tool("a processor without AVX-512 (Haswell, emulated)", "works", "the same bits")
def test_without_avx512(long_run: None, tmp_path: Path, count_cases: Callable[[int], None]) -> None:
    here = installing.check(
        [sys.executable], 25, cwd=tmp_path, env={"PYTHONPATH": str(installing.ROOT)}
    )
    there = bits_on("Haswell", tmp_path)
    assert there["isas"] == ["avx2", "baseline"]
    assert there["bits"] == here["bits"]
    count_cases(50)


@pytest.mark.tool(
    "a processor without AVX2 (Sandy Bridge, Nehalem, emulated)",
    "works",
    "the same bits; numpy's OpenBLAS needs OPENBLAS_CORETYPE=Nehalem there",
)
@pytest.mark.parametrize("processor", ["SandyBridge", "Nehalem"])
def test_without_avx2(
    processor: str, long_run: None, tmp_path: Path, count_cases: Callable[[int], None]
) -> None:
    here = installing.check(
        [sys.executable], 25, cwd=tmp_path, env={"PYTHONPATH": str(installing.ROOT)}
    )
    there = bits_on(processor, tmp_path)
    assert there["isas"] == ["baseline"]
    assert there["bits"] == here["bits"]
    count_cases(25)


def test_forced_instruction_sets_have_the_same_bits(
    tmp_path: Path, count_cases: Callable[[int], None]
) -> None:
    """In one process, one after the other: the check itself compares them."""
    result = installing.check(
        [sys.executable], 60, cwd=tmp_path, env={"PYTHONPATH": str(installing.ROOT)}
    )
    if result["isas"] == [None]:
        pytest.skip("the kernels are not built")
    count_cases(60 * len(result["isas"]))


@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_a_process_begun_with_an_instruction_set_keeps_to_it(isa: str, tmp_path: Path) -> None:
    code = (
        "import sparseconv as sc, torch\n"
        "sc.SparseConv1d(2, 3, 5)(torch.ones(2, 2, 9)).sum().backward()\n"
        "print(sc.available_backends()['cpp'])"
    )
    said = installing.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installing.ROOT), "SPARSECONV_CPU_ISA": isa},
    )
    if isa not in said and "cannot run" in said:
        pytest.skip(f"this processor has no {isa}")
    assert f"available (CPU, {isa})" in said
