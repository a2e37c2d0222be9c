"""What nvcc makes of the CUDA kernels, and that the binding fits torch: no GPU is needed.

``pytest -s tests/kernels/cuda/test_cuda_build.py`` prints the tables.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cuda_host import COMPILER, ROOT, SHARED, STATIC_SHARED, most_shared
from cuda_sass import Share, kernels_of, share_of_multiply_adds

from sparseconv.bench.cases import CASES
from sparseconv.measure.table import Table

CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
NVCC = shutil.which("nvcc") or shutil.which(CUDA / "bin" / "nvcc") or ""
ARCHITECTURES = ("sm_80", "sm_90")
SOURCES = ("correlate", "wgrad")

# The most registers of each instance on any architecture. 128 threads: up to 128 registers let four
# blocks run on a multiprocessor, 168 three, 255 two.
CEILINGS = {
    "correlate registers 39 31": 168,
    "correlate registers 26 31": 168,
    "correlate registers 13 31": 168,
    "correlate registers 39 17": 128,
    "correlate registers 26 17": 128,
    "correlate registers 13 17": 128,
    "correlate tiled float": 96,
    "correlate tiled double": 128,
    "correlate direct float": 96,
    "correlate direct double": 128,
    "wgrad registers 39 31": 255,
    "wgrad registers 26 31": 255,
    "wgrad registers 13 31": 255,
    "wgrad tiled float": 128,
    "wgrad tiled double": 128,
    "wgrad direct float": 128,
    "wgrad direct double": 128,
    "fold float": 64,
    "fold double": 64,
    "add_chunks float": 64,
    "add_chunks double": 64,
}
# FFMA of the instructions that the wide kernel executes between two fillings of its window, for
# DSN's layer with S = 80 %. For sm_80, nvcc does not see that all lanes of a warp jump alike.
LEAST_SHARE = {"sm_80": 0.5, "sm_90": 0.6}


class Resources(NamedTuple):
    kernel: str
    architecture: str
    registers: int
    shared: int  # static
    stack: int
    spilled: int


class Built(NamedTuple):
    objects: dict[str, Path]
    resources: list[Resources]


def disassembler() -> str:
    """cuobjdump: the toolkit's, or the one that triton carries; empty if there is none."""
    folders = [CUDA / "bin"]
    for folder in map(Path, sys.path):
        folders.append(folder / "triton" / "backends" / "nvidia" / "bin")
    found = [shutil.which("cuobjdump"), *(shutil.which(folder / "cuobjdump") for folder in folders)]
    return next(filter(None, found), "")


def readable(symbol: str) -> str:
    """``"correlate registers 39 31"`` from a mangled name."""
    kind = re.search(r"(correlate|wgrad|fold|add_chunks)_kernel", symbol)
    assert kind, symbol
    if instance := re.search(r"9RegistersILi(\d+)ELi(\d+)E", symbol):
        return f"{kind[1]} registers {instance[1]} {instance[2]}"
    source = re.search(r"5(Tiled)|6(Direct)", symbol)
    number = {"f": "float", "d": "double"}[
        re.search(r"(?:5Tiled|6Direct|_kernel)I([fd])", symbol)[1]  # type: ignore[index]
    ]
    return " ".join([kind[1], *([source[0][1:].lower()] if source else []), number])


def run(command: Sequence[Any]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if not NVCC:
        pytest.skip("nvcc is not installed")
    folder = tmp_path_factory.mktemp("cuda")
    targets = [f"-gencode=arch={a.replace('sm', 'compute')},code={a}" for a in ARCHITECTURES]
    flags = ["-O3", "-std=c++20", "-Xptxas=-v,-warn-spills", "-Werror=all-warnings", "--threads=2"]
    objects = {name: folder / f"{name}.o" for name in SOURCES}
    jobs = [
        subprocess.Popen(
            [NVCC, *flags, *targets, "-c", ROOT / "csrc" / "cuda" / f"{name}.cu", "-o", path],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name, path in objects.items()
    ]  # fmt: skip
    logs = [job.communicate()[0] for job in jobs]
    for job, log in zip(jobs, logs, strict=True):
        assert job.returncode == 0, log
    found = re.findall(
        r"entry function '(\S+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers(.*?)\n",
        "".join(logs),
        re.DOTALL,
    )
    resources = []
    for symbol, architecture, stack, stores, loads, registers, rest in found:
        shared = re.search(r"(\d+) bytes smem", rest)
        numbers = int(registers), int(shared[1]) if shared else 0, int(stack)
        spilled = int(stores) + int(loads)
        resources.append(Resources(readable(symbol), architecture, *numbers, spilled))
    return Built(objects, resources)


def test_registers_and_shared_memory_stay_below_their_ceilings(
    built: Built, tmp_path: Path
) -> None:
    dynamic = {name: most.bytes for name, most in most_shared(tmp_path).items()}
    rows = []
    for r in built.resources:
        asked = dynamic.get(r.kernel, 0)  # fold and add_chunks need none
        assert r.registers <= CEILINGS[r.kernel], r
        assert r.shared <= STATIC_SHARED, r
        assert r.shared + asked <= SHARED, (r, asked)
        cells = (r.registers, CEILINGS[r.kernel], r.shared, asked, SHARED, r.stack, r.spilled)
        rows.append([r.kernel, r.architecture, *map(str, cells)])
    header = ("kernel", "architecture", "registers", "ceiling", "static shared",
              "dynamic shared, at most", "ceiling of both", "stack", "spilled")  # fmt: skip
    print("\n" + Table(header, rows, text_columns=2).markdown())
    assert {(r.kernel, r.architecture) for r in built.resources} == {
        (kernel, a) for kernel in CEILINGS for a in ARCHITECTURES
    }
    assert dynamic.keys() == {k for k in CEILINGS if k.startswith(("correlate", "wgrad"))}


def test_nothing_spills_or_lives_in_local_memory(built: Built) -> None:
    assert not [r for r in built.resources if r.stack or r.spilled]


def dsn_batches() -> list[list[int]]:
    """What warps meet per channel and row: the window rows of every 11th kernel of DSN's layer."""
    pattern = CASES["dsn_evolved_L128"].make_pattern()
    crow, col = pattern.crow_indices.tolist(), pattern.col_indices.tolist()
    return [col[begin:end] for begin, end in list(pairwise(crow))[::11] if end > begin]


@pytest.mark.parametrize("source", SOURCES)
def test_the_register_kernels_mostly_multiply_and_add(built: Built, source: str) -> None:
    if not (tool := disassembler()):
        pytest.skip("no disassembler: neither cuobjdump nor triton is installed")
    batches, rows = dsn_batches(), []
    for architecture in ARCHITECTURES:
        listing = run([tool, "-arch", architecture, "-sass", built.objects[source]])
        for symbol, code in kernels_of(listing).items():
            name = readable(symbol)
            assert not [line for line in code if re.search(r"\b(LDL|STL)\b", line.text)], name
            if "registers 39" in name:
                outputs = int(name.split()[-1])
                share = share_of_multiply_adds(code, 39, outputs, batches)
                rows.append([name, architecture, *(f"{part:.1%}" for part in share)])
                if source == "correlate" and outputs == 31:
                    assert share.batch > LEAST_SHARE[architecture], (name, architecture, share)
    print("\n" + Table(("kernel", "architecture", *Share._fields), rows, text_columns=2).markdown())
    assert rows


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
    (folder / "bin").mkdir()
    if release:
        nvcc = folder / "bin" / "nvcc"
        tells = f"echo 'Cuda compilation tools, release {release}, V{release}.1'"
        nvcc.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {tells}\n')
        nvcc.chmod(0o755)
    return str(folder)


def set_up(code: str, version: str | None, home: str | None, force: str, folder: Path) -> Any:
    """Run code in a folder with setup.py, beside a torch for this version of CUDA."""
    before = f"""
import torch
from torch.utils import cpp_extension
torch.version.cuda, cpp_extension.CUDA_HOME = {version!r}, {home!r}
"""
    return subprocess.run(
        [sys.executable, "-c", before + code], env=os.environ | {"FORCE_CUDA": force}, cwd=folder,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.promise("P10")
@pytest.mark.parametrize(("version", "release"), [(None, ""), ("13.0", ""), ("13.0", "13.0")])
@pytest.mark.parametrize("force", ["", "0", "1"])
def test_what_is_built(version: str | None, release: str, force: str, tmp_path: Path) -> None:
    """CUDA kernels where torch has CUDA and there is an nvcc; FORCE_CUDA may forbid or demand."""
    code = """
import json, warnings
warnings.simplefilter("error")
import setuptools
from distutils.core import run_setup
(module,) = run_setup("setup.py", stop_after="init").ext_modules
print(json.dumps([module.sources, module.define_macros]))
"""
    done = set_up(code, version, toolkit(tmp_path, release) if version else None, force, ROOT)
    if not release and force == "1":
        assert done.returncode == 1
        assert "FORCE_CUDA=1 needs a torch with CUDA and nvcc" in done.stderr
        assert "nvcc is not found" in done.stderr
        return
    assert (done.returncode, done.stderr) == (0, "")
    cuda = release != "" and force != "0"
    sources, macros = json.loads(done.stdout.splitlines()[-1])
    ours = {path for path in sources if path.startswith("csrc/cuda")}
    wanted = {"conv1d_cuda.cpp", "correlate.cu", "wgrad.cu"} if cuda else set()
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


@pytest.mark.promise("P10")
@pytest.mark.parametrize(
    ("release", "gpus", "source"),
    [
        ("", "9.0", SMALL),
        ("12.0", "9.0", SMALL),  # not torch's
        ("13.0", "9.0", SMALL),  # cannot compile
        ("13.0", "", SMALL),  # does not know for which GPUs, where none is visible
        ("13.0", "9.0", "#error broken"),
    ],
)
@pytest.mark.parametrize("force", ["", "1"])
def test_a_build_that_fails(
    release: str, gpus: str, source: str, force: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What cannot be built is left out, and nothing else is; what is demanded stops the build."""
    if not shutil.which(COMPILER):
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", gpus)
    home = tmp_path / "cuda"
    home.mkdir()
    shutil.copy(ROOT / "setup.py", tmp_path)
    for name, text in (("extension.cpp", source), ("cpu/cpu.cpp", ""), ("cuda/kernel.cu", "")):
        file = tmp_path / "csrc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "sparseconv").mkdir()
    code = """
import runpy, sys
sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""
    done = set_up(code, "13.0", toolkit(home, release), force, tmp_path)
    built = list((tmp_path / "sparseconv").glob("_C*"))
    assert done.returncode == (force == "1"), done.stderr
    if force == "1":
        assert not built
        return
    without = re.findall("sparseconv: the (.*) left out: .", done.stderr)
    assert without == ["CUDA kernels are"] * bool(release) + ["C++ extension is"] * (not built)
    assert bool(built) == (source == SMALL), done.stderr
    if not gpus and not torch.cuda.is_available():
        assert "name those to build for in TORCH_CUDA_ARCH_LIST" in done.stderr
    if built:
        run([sys.executable, "-c", f"""
import importlib.util, torch
spec = importlib.util.spec_from_file_location("sparseconv._C", {str(built[0])!r})
assert importlib.util.module_from_spec(spec).cuda == 0
"""])  # fmt: skip
