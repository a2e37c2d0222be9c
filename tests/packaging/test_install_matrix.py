"""Installing: versions of Python and torch, and processors without AVX-512 or AVX2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import installing
import pytest

pytestmark = pytest.mark.promise("P10")
# numpy's OpenBLAS takes an emulated processor for another one and crashes before this package is
# imported; named, it does not.
OPENBLAS = {"OPENBLAS_CORETYPE": "Nehalem"}

# Each torch has its own Dynamo.
COMPILED = """
import torch, sparseconv
layer, x = sparseconv.SparseConv1d(2, 4, 5, density=0.5), torch.randn(3, 2, 20)
grads = [
    torch.autograd.grad(run(x).square().sum(), layer.values)[0]
    for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True))
]
assert grads[0].equal(grads[1])
"""

LONG = pytest.mark.campaign("builds kernels or emulates processors for minutes")


def on(python: str, torch: str, note: str) -> Any:
    mark = pytest.mark.tool(f"Python {python} with torch {torch}{note}", "works")
    return pytest.param(python, torch, marks=mark)


@LONG
@pytest.mark.parametrize(
    ("python", "torch"),
    [
        on("3.11", "2.10.0", ", the oldest supported"),
        on("3.12", "2.13.0", ""),
        on("3.13", "2.15.0", ", the newest that exists"),
        on("3.14", "2.15.0", ""),
    ],
)
def test_versions(python: str, torch: str, tmp_path: Path, count_cases: Any) -> None:
    """Build from the source archive with this Python and torch, install it, and let it compute."""
    base = shutil.which(f"python{python}")
    if base is None or subprocess.run([base, "-c", ""], check=False).returncode:
        pytest.skip(f"Python {python} is not installed")
    environment = tmp_path / "an environment"
    installing.run([base, "-m", "venv", environment])
    interpreter = environment / "bin" / "python"
    pip = [interpreter, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
    # As the README says, except for the version: torch first, then what builds against it.
    installing.run([*pip, f"torch=={torch}"])
    installing.run([*pip, "numpy>=2.0", "setuptools>=77", "ninja", "pybind11", "wheel"])
    said = installing.make_archives(tmp_path, [interpreter], FORCE_CUDA="0", MAX_JOBS="1")
    assert "left out" not in said, said[-4000:]
    installing.run([*pip, "--no-deps", "--no-index", next(tmp_path.glob("*.whl"))])
    result = installing.check([interpreter], 200, cwd=tmp_path)
    installing.run([interpreter, "-I", "-c", COMPILED], cwd=tmp_path)
    count_cases(200 * len(result["isas"]))
    shutil.rmtree(environment)  # gigabytes
    assert Path(result["file"]).is_relative_to(environment)
    assert result["python"].startswith(python)
    assert result["torch"].startswith(torch)
    assert result["isas"][-1] == "baseline"
    assert result["warnings"] == []


WITHOUT_AVX2 = pytest.mark.tool(
    "a processor without AVX2 (Sandy Bridge, Nehalem, emulated)", "works", "the same bits"
)
WITHOUT_AVX512 = pytest.mark.tool(
    "a processor without AVX-512 (Haswell, emulated)", "works", "the same bits"
)


@LONG
@pytest.mark.parametrize(
    ("processor", "isas"),
    [
        pytest.param("Haswell", ["avx2", "baseline"], marks=WITHOUT_AVX512),
        pytest.param("SandyBridge", ["baseline"], marks=WITHOUT_AVX2),
        pytest.param("Nehalem", ["baseline"], marks=WITHOUT_AVX2),
    ],
)
def test_processors(processor: str, isas: list[str], tmp_path: Path, count_cases: Any) -> None:
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("qemu-user is not installed")
    path = os.pathsep.join([str(installing.ROOT), *filter(None, sys.path)])
    # The emulator takes no links to interpreters with a pyvenv.cfg in their folder.
    python, env = Path(sys.executable).resolve(), {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    here = installing.check([sys.executable], 25, cwd=tmp_path, env=env)
    command = [emulator, "-cpu", processor, python]
    there = installing.check(command, 25, cwd=tmp_path, env={**env, **OPENBLAS})
    assert there["isas"] == isas
    assert there["bits"] == here["bits"]
    count_cases(25 * len(isas))
