"""The CUDA backend on a machine without a GPU: emulated, compiled by nvcc, and when it is built."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from child import PYTHONPATH, ROOT, preloaded, run

from sparseconv import KernelCSR
from sparseconv.core.geometry import Geometry
from sparseconv.ops import gpu_plans
from sparseconv.testing import random_case

HERE = Path(__file__).parent
CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
NVCC = shutil.which("nvcc") or shutil.which(CUDA / "bin" / "nvcc") or ""
COMPILER = os.environ.get("CXX", "c++")
ARCHITECTURES = ("sm_80", "sm_90")
KERNELS = ROOT / "csrc" / "cuda" / "kernels.cu"


@pytest.mark.campaign("compiles and emulates for minutes")
@pytest.mark.promise("P1")
def test_emulated(tmp_path: Path, count_cases: Any) -> None:
    """The cases of another file, in a process whose ops are emulated CUDA kernels."""
    if not shutil.which(COMPILER):
        pytest.skip(f"{COMPILER} is not installed")
    (tmp_path / "c10" / "cuda").mkdir(parents=True)
    for header in ("CUDAException.h", "CUDAGuard.h", "CUDAStream.h"):
        (tmp_path / "c10" / "cuda" / header).touch()
    (tmp_path / "cuda_runtime_api.h").touch()
    include, library = Path(torch.__file__).parent / "include", tmp_path / "emulated.so"
    run([
        COMPILER, "-std=c++20", "-O1", "-g1", "-shared", "-fPIC", "-o", library,
        "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all",
        f"-I{tmp_path}", f"-I{ROOT / 'csrc'}", f"-I{HERE}",
        "-isystem", include, "-isystem", include / "torch/csrc/api/include",
        HERE / "emulated.cpp", f"-L{include.parent / 'lib'}", "-ltorch_cpu", "-lc10",
    ])  # fmt: skip
    without_extension = (
        "import sys; sys.modules['sparseconv._C'] = None; import pytest\n"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    environment = {"EMULATED_CUDA": str(library), "PYTHONPATH": PYTHONPATH, **preloaded(COMPILER)}
    command = [sys.executable, "-c", without_extension, HERE / "cuda_cases.py"]
    said = run(command, cwd=ROOT, env={**os.environ, **environment})
    count_cases(int(re.findall(r"cases executed: (\d+)", said)[0]))


@pytest.mark.parametrize("seed", range(30))
def test_plans_hold_the_whole_pattern(seed: int) -> None:
    """Every weight has the slot of its tap, also in the transposed pattern, and its bit is set."""
    case = random_case(random.Random(seed), stride=1, groups=1, dilation=1)
    pattern = case.make_pattern()
    geometry = case.geometry
    mask = pattern.to_mask()
    for make, expected in (
        (gpu_plans.cuda_fprop, mask),
        (gpu_plans.cuda_dgrad, mask.transpose(0, 1)),
    ):
        rows, slots = make(pattern.crow_indices, pattern.col_indices, geometry)
        number, begin = rows[:, 0] & 0xFFFFFFFF, rows[:, 0] >> 32
        assert number.sort().values.equal(torch.arange(len(expected)))
        counts = expected.sum((1, 2))
        assert (counts[number].diff() <= 0).all(), "heaviest first"
        assert begin.equal((counts.cumsum(0) - counts)[number])
        taps = torch.arange(gpu_plans.REACH)
        bits = (rows[:, 1:, None] >> taps & 1).bool()
        assert bits[..., : mask.shape[2]].equal(expected[number])
        assert not bits[..., mask.shape[2] :].any()
        spread = torch.zeros(*expected.shape[:2], gpu_plans.REACH).flatten()
        spread[slots.long()] = torch.arange(1.0, pattern.nnz + 1)
        dense = torch.zeros(mask.shape)
        dense[mask] = torch.arange(1.0, pattern.nnz + 1)
        turned = dense if make is gpu_plans.cuda_fprop else dense.transpose(0, 1)
        assert spread.view(*expected.shape[:2], -1)[..., : mask.shape[2]].equal(turned)


def test_what_the_kernels_do_not_compute_is_refused() -> None:
    pattern = KernelCSR.full((1, 1, 41))
    geometry = Geometry.of(pattern.shape, 1, (0, 0), 1, 1, "zeros")
    for make in (gpu_plans.cuda_fprop, gpu_plans.cuda_dgrad):
        with pytest.raises(NotImplementedError, match="backend="):
            make(pattern.crow_indices, pattern.col_indices, geometry)


@pytest.mark.campaign("nvcc compiles for seconds")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_compiles_and_waits_for_copies_before_others_may_read_them(
    architecture: str, tmp_path: Path
) -> None:
    """Without spills, and in an order that no emulation shows: that of the machine code."""
    if not NVCC:
        pytest.skip("nvcc is not installed")
    flags = ["-O3", "-std=c++20", "-Xptxas=-warn-spills", "-Werror=all-warnings"]
    built = tmp_path / "kernels.o"
    run([NVCC, *flags, f"-arch={architecture}", "-c", KERNELS, "-o", built])
    dump = pytest.importorskip("triton").knobs.nvidia.cuobjdump.path
    functions = re.split(r"\tFunction : (\S+)", run([dump, "-sass", built]))[1:]
    for symbol, text in zip(functions[::2], functions[1::2], strict=True):
        words = re.findall(r"\*/\s+(?:@!?U?P\w+ )?\s*([A-Z]\w*)", text)
        if "pack_kernel" not in symbol:
            assert words.index("LDGSTS") < words.index("DEPBAR") < words.index("BAR"), symbol


@pytest.mark.campaign("compiles for ten seconds")
def test_the_binding_fits_the_headers_of_torch() -> None:
    """A CPU build of torch cannot link it, but has nearly all headers that it includes."""
    runtime = CUDA / "include" / "cuda_runtime_api.h"
    if not shutil.which(COMPILER) or not runtime.exists():
        pytest.skip("no C++ compiler, or no CUDA headers")
    include = Path(torch.__file__).parent / "include"
    run([
        COMPILER, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror",
        "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE",  # the header that only a CUDA build generates
        "-isystem", include, "-isystem", include / "torch/csrc/api/include",
        "-isystem", runtime.parent, ROOT / "csrc" / "cuda" / "conv1d_cuda.cpp",
    ])  # fmt: skip


def toolkit(folder: Path, release: str) -> str:
    """A CUDA_HOME whose nvcc tells its release and compiles nothing; without one if empty."""
    (folder / "bin").mkdir(parents=True)
    if release:
        nvcc = folder / "bin" / "nvcc"
        tells = f"echo 'Cuda compilation tools, release {release}, V{release}.1'"
        nvcc.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {tells}\n')
        nvcc.chmod(0o755)
    return str(folder)


@pytest.mark.promise("P10")
def test_what_is_built(tmp_path: Path) -> None:
    """CUDA kernels where torch has CUDA and there is an nvcc; FORCE_CUDA may forbid or demand."""
    code = """
import itertools, json, os, sys, warnings
import torch
from torch.utils import cpp_extension
warnings.simplefilter("error")
import setuptools
from distutils.core import run_setup
for home, force in itertools.product([None, *sys.argv[1:]], ["", "0", "1"]):
    torch.version.cuda, cpp_extension.CUDA_HOME = "13.0" if home else None, home
    os.environ["FORCE_CUDA"] = force
    try:
        (module,) = run_setup("setup.py", stop_after="init").ext_modules
    except RuntimeError as error:
        print(json.dumps([home, force, str(error), []]))
    else:
        print(json.dumps([home, force, module.sources, module.define_macros]))
"""
    homes = [toolkit(tmp_path / name, release) for name, release in (("no", ""), ("yes", "13.0"))]
    done = subprocess.run(
        [sys.executable, "-c", code, *homes], cwd=ROOT, capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if "No CUDA runtime is found" not in line]
    assert (done.returncode, said) == (0, [])
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(results) == 9
    for home, force, sources, macros in results:
        if force == "1" and home != homes[1]:
            assert "FORCE_CUDA=1 needs a torch with CUDA and nvcc" in sources
            assert "nvcc is not found" in sources
            continue
        cuda = home == homes[1] and force != "0"
        ours = {path for path in sources if path.startswith("csrc/cuda")}
        wanted = {"conv1d_cuda.cpp", "kernels.cu"} if cuda else set()
        assert ours == {f"csrc/cuda/{name}" for name in wanted}
        assert {"csrc/extension.cpp", "csrc/cpu/ops/fprop.cpp"} < set(sources)
        assert macros == [["SPARSECONV_WITH_CUDA", str(int(cuda))]]


SMALL = """
#include <Python.h>
static PyModuleDef small = {PyModuleDef_HEAD_INIT, "_C"};
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
    PyObject* module = PyModule_Create(&small);
    PyModule_AddIntConstant(module, "cuda", SPARSECONV_WITH_CUDA);
    return module;
}
"""


BUILD = """
import runpy, sys
import setuptools, torch
from torch.utils import cpp_extension

torch.version.cuda, cpp_extension.CUDA_HOME = "13.0", sys.argv[1]
sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.mark.promise("P10")
@pytest.mark.parametrize(
    ("release", "gpus", "force"),
    [
        ("12.0", "9.0", ""),  # not torch's
        ("13.0", "9.0", "1"),  # cannot compile
        ("13.0", "", ""),  # does not know for which GPUs, where none is visible
    ],
)
def test_builds_that_fail(release: str, gpus: str, force: str, tmp_path: Path) -> None:
    """CUDA kernels that cannot be built are left out, or stop the build if they are demanded."""
    if not shutil.which(COMPILER):
        pytest.skip("no C++ compiler")
    home = toolkit(tmp_path / "cuda", release)
    for name, text in (("extension.cpp", SMALL), ("cpu/cpu.cpp", ""), ("cuda/kernel.cu", "")):
        file = tmp_path / "csrc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "sparseconv").mkdir()
    shutil.copy(ROOT / "setup.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, home], cwd=tmp_path, capture_output=True, text=True,
        check=False, env=os.environ | {"TORCH_CUDA_ARCH_LIST": gpus, "FORCE_CUDA": force},
    )  # fmt: skip
    said, built = done.stdout + done.stderr, [*(tmp_path / "sparseconv").glob("_C*")]
    assert done.returncode == len(force), said
    without = re.findall("sparseconv: the (.*) left out: .", said)
    assert without == ([] if force else ["CUDA kernels are"])
    assert len(built) == (not force), said
    if built:
        spec = importlib.util.spec_from_file_location("sparseconv._C", built[0])
        assert importlib.util.module_from_spec(spec).cuda == 0
    if not gpus and not torch.cuda.is_available():
        assert "name those to build for in TORCH_CUDA_ARCH_LIST" in said
