"""Which backend runs: a named one runs or raises, and what is missing is said."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sparseconv as sc
from sparseconv.core.geometry import Geometry
from sparseconv.functional import conv
from sparseconv.ops import backends, gpu_plans

PATTERN = sc.KernelCSR.full((2, 1, 3))


def convolve(backend: str = "auto") -> torch.Tensor:
    return sc.sparse_conv1d(torch.ones(1, 1, 5), torch.ones(6), PATTERN, backend=backend)


def test_extension_is_built() -> None:
    # A suite that skips the kernels would pass without testing anything.
    assert backends.extension is not None, sc.available_backends()["cpp"]


def test_which_backend_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, taken = torch.device("cpu"), backends.resolve_backend
    monkeypatch.delenv("SPARSECONV_BACKEND", raising=False)
    assert taken("auto", cpu) == "cpp"
    assert taken("auto", torch.device("meta")) == "reference"
    monkeypatch.setenv("SPARSECONV_BACKEND", "reference")
    assert taken("auto", cpu) == "reference"
    assert taken("cpp", cpu) == "cpp"
    monkeypatch.setenv("SPARSECONV_BACKEND", "fast")
    for name in ("auto", "fast"):
        with pytest.raises(ValueError, match="'fast'"):
            convolve(name)


@pytest.mark.promise("P10")
def test_named_backend_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="meta"):
        backends.resolve_backend("cpp", torch.device("meta"))
    for module in (backends, conv):
        monkeypatch.setattr(module, "extension", None)
    monkeypatch.setattr(backends, "_missing_reason", "not built, because")
    with pytest.raises(RuntimeError, match="not built, because"):
        convolve("cpp")
    states = sc.available_backends()
    assert list(states) == list(backends.BACKENDS)
    assert states.pop("reference") == "available"
    assert states["cpp"] == states["cuda"] == "not built, because"
    assert torch.equal(convolve("auto"), torch.full((1, 2, 3), 3.0))


@pytest.mark.promise("P10")
def test_a_gpu_backend_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def state(built: bool, version: str | None, device: bool) -> str:
        fake = SimpleNamespace(cuda=built, isa=str, openmp=True, getenv=os.environ.get)
        monkeypatch.setattr(backends, "extension", fake)
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        return sc.available_backends()["cuda"]

    def auto(triton: Any, **options: Any) -> str:
        monkeypatch.setattr(backends, "_load_triton", lambda: (triton, "none"))
        return backends.resolve_backend("auto", cuda, **options)

    cuda, module = torch.device("cuda"), SimpleNamespace(INTERPRETED=False)
    for version, text in ((None, "not built: torch lacks CUDA"), ("13.0", "FORCE_CUDA=0 was set;")):
        assert text in state(False, version, True)
        assert (auto(None), auto(module)) == ("reference", "triton")
        with pytest.raises(RuntimeError, match=f"'cuda' cannot run: .*{text}"):
            backends.resolve_backend("cuda", cuda)
    assert state(True, "13.0", False) == "no GPU: torch sees no CUDA device"
    assert state(True, "13.0", True) == "available (a GPU)"
    assert (auto(None), auto(module)) == ("reference", "triton")
    assert auto(module, cuda_pays=True) == "cuda"
    assert "a GPU, blocks on tensor cores" in sc.available_backends()["triton"]
    auto(None)
    for name, device, text in (("cuda", "cpu", "it runs on CUDA"), ("triton", "cuda", "none")):
        with pytest.raises(RuntimeError, match=f"'{name}' cannot run: {text}"):
            backends.resolve_backend(name, torch.device(device))
    assert sc.available_backends()["triton"] == "none"


def test_slots_of_the_cuda_kernels_are_int32() -> None:
    geometry = Geometry.of((1, 1, 1), 1, 0, 1, 1, "zeros")
    for channels, computes in ((2**31 // 40, True), (2**31 // 40 + 1, False)):
        assert gpu_plans.cuda_computes(geometry._replace(group_channels=channels)) is computes


def test_blocks_are_multiplied_on_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def multiplied(tf32: bool = True, capability: int = 8, missing: str | None = None) -> list[Any]:
        monkeypatch.setattr(backends, "_why_not", lambda *_: missing)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (capability, 0))
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            dtypes, cuda = (torch.float32, torch.float64, torch.bfloat16), torch.device("cuda")
            return [dtype for dtype in dtypes if backends.multiplies_blocks(dtype, cuda)]

    assert multiplied() == [torch.float32, torch.bfloat16]
    assert multiplied(tf32=False) == [torch.bfloat16]
    assert multiplied(capability=7) == multiplied(missing="no Triton") == []


@pytest.mark.promise("P10")
def test_every_listed_isa_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.extension is not None
    names = backends.extension.isas()
    assert names[-1] == "baseline"
    for name in names:
        monkeypatch.setenv("SPARSECONV_CPU_ISA", name)
        assert backends.extension.isa() == name
        assert sc.available_backends()["cpp"] == f"available (CPU, {name})"
        assert torch.equal(convolve("cpp"), torch.full((1, 2, 3), 3.0))
    monkeypatch.setattr(backends.extension, "openmp", False)
    assert sc.available_backends()["cpp"].endswith(", one thread: built without OpenMP)")
    monkeypatch.setenv("SPARSECONV_CPU_ISA", "AVX2")
    with pytest.raises(ValueError, match="'AVX2'"):
        convolve("cpp")
    assert "SPARSECONV_CPU_ISA" in sc.available_backends()["cpp"]


@pytest.mark.promise("P8")
def test_the_isa_is_read_with_pythons_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where autograd's thread read it, another one that wrote to os.environ ended the process."""
    layer = sc.SparseConv1d(2, 3, 5)
    y = layer(torch.randn(2, 2, 9))
    monkeypatch.setenv("SPARSECONV_CPU_ISA", "mmx")
    y.sum().backward()
    assert layer.values.grad is not None


@pytest.mark.promise("P10")
def test_import_is_light() -> None:
    """Nor does it take Triton, or the compiler's two seconds, to ask what there is.

    A GPU is hidden: with one, Triton is loaded to find out whether its kernels can run. A FLOP
    counter that is imported later counts. Every op of the extension is defined: torch.compile
    needs all.
    """
    code = """
import os, sys
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch
before = set(sys.modules)
import sparseconv as sc
from sparseconv.measure import machine
sc.available_backends()
machine.environment_info()
assert not [op for op in torch._C._dispatch_find_dangling_impls() if "sparseconv" in op]
layer = sc.SparseConv1d(2, 3, 5, pattern=sc.KernelCSR.random((3, 2, 5), 7))
y = layer(torch.ones(4, 2, 9))
y.sum().backward(retain_graph=True)
extras = {"aeon", "sklearn", "matplotlib", "triton", "tqdm", "sparseconv.ops.triton"}
extras |= {"sparseconv.profiling", "sparseconv.conversion"}
extras |= {"torch._dynamo", "torch._inductor", "sympy", "scipy", "pandas", "numba"}  # seconds each
print(sorted(extras & (set(sys.modules) - before)))
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    y.sum().backward()
print(counter.get_total_flops())
# Modules are there without an import:
sc.datasets, sc.rocket, sc.testing, sc.pruning.WHC, sc.training.train
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[]", str(2 * 7 * 4 * 5)], done.stderr
