"""The CUDA ops as the library calls them, on a machine without CUDA: the binding and the kernels
are compiled for CPU tensors, and a fresh process trains through them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_host import COMPILER, ROOT

HEADERS = ("CUDAException.h", "CUDAGuard.h", "CUDAStream.h")

# The process has no other kernels: the extension is blocked, and the ops are what was compiled.
PROGRAM = """
import random, sys
sys.modules["sparseconv._C"] = None
import torch
import sparseconv as sc
from sparseconv import _cuda_plans, _ops, functional
from sparseconv.testing import *
from sparseconv.testing import expected_dgrad, expected_fprop, expected_wgrad

torch.ops.load_library(sys.argv[1])
torch.use_deterministic_algorithms(True)  # fresh memory is filled with NaN
functional.resolve_backend = lambda name, device: "cuda"
_ops._fprop_plan = lambda pattern, g, device: (
    pattern.crow_indices, _cuda_plans.fprop_rows(pattern, g.dilation)
)
_ops._dgrad_plan_for = lambda pattern, g, device: _ops.DgradPlan(
    *_cuda_plans.dgrad_plan(pattern, g.stride, g.dilation, g.groups)
)

rng, done = random.Random(0), 0
cases = [random_case(rng) for _ in range(60)]
cases += [Case(0, 3, 4, 5, 40), Case(1, 70, 20, 39, 1100, density=0.1, padding=19)]
for case in cases:
    tensors = case.tensors()
    x, values = tensors.input.requires_grad_(), tensors.values.requires_grad_()
    y = sc.sparse_conv1d(x, values, case.make_pattern(), tensors.bias, **case.options)
    dx, dw = torch.autograd.grad(y, (x, values), tensors.grad)
    for got, expected in ((y, expected_fprop), (dx, expected_dgrad), (dw, expected_wgrad)):
        exact, bound = expected(case, tensors)
        assert (got.shape, got.dtype) == (exact.shape, x.dtype), case
        assert ((got.double() - exact).abs() <= bound).all(), (expected.__name__, case)
    done += 1

layer = sc.SparseConv1d(3, 5, 9, padding=4, density=0.3)
layer(torch.randn(2, 3, 30)).square().sum().backward()  # the gradient of the bias, too
assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())

case = Case(2, 4, 6, 3, 20)
x, values, bias, grad = case.tensors()
pattern = case.make_pattern()
g = functional.Geometry(pattern.shape, *case.geometry)
crow, rows = _ops._fprop_plan(pattern, g, None)
plan = _ops._dgrad_plan_for(pattern, g, None)
wrong = [
    lambda: _ops._fprop(x[:, 1:], values, bias, crow, rows, *g),
    lambda: _ops._fprop(x, values[1:], bias, crow, rows, *g),
    lambda: _ops._fprop(x.double(), values, bias, crow, rows, *g),
    lambda: _ops._fprop(x, values, bias[1:], crow, rows, *g),
    lambda: _ops._fprop(x, values, bias, crow[1:], rows, *g),
    lambda: _ops._fprop(x, values, bias, crow.long(), rows, *g),
    lambda: _ops._dgrad(grad[:, :, 1:], values, *plan, g.shape, 20, *g[1:]),
    lambda: _ops._dgrad(grad, values, plan[0][1:], *plan[1:], g.shape, 20, *g[1:]),
    lambda: _ops._wgrad(grad[1:], x, crow, rows, *g),
    lambda: _ops._wgrad(grad.double(), x, crow, rows, *g),
]
for call in wrong:
    try:
        call()
    except (ValueError, TypeError) as error:
        assert "expected" in str(error), error
    else:
        raise AssertionError("a wrong argument was taken")

import os
results = []
for name in ("", "direct", "tiled", "narrow", "wide"):
    os.environ["SPARSECONV_CUDA_KERNEL"] = name
    results.append(_ops._fprop(x, values, bias, crow, rows, *g))
    assert results[-1].equal(results[0]), name
os.environ["SPARSECONV_CUDA_KERNEL"] = "fast"
try:
    _ops._fprop(x, values, bias, crow, rows, *g)
except ValueError as error:
    assert "must be direct, tiled, narrow or wide, but got 'fast'" in str(error), error
else:
    raise AssertionError("an unknown kernel was taken")
print(done)
"""


@pytest.mark.promise("P1")
def test_the_binding_computes_what_it_should(tmp_path: Path, count_cases) -> None:
    if not shutil.which(COMPILER):
        pytest.skip(f"{COMPILER} is not installed")
    (tmp_path / "c10" / "cuda").mkdir(parents=True)
    for header in HEADERS:
        (tmp_path / "c10" / "cuda" / header).touch()
    (tmp_path / "cuda_runtime_api.h").touch()
    include, library = Path(torch.__file__).parent / "include", tmp_path / "binding.so"
    compiled = subprocess.run(
        [
            COMPILER, "-std=c++20", "-O1", "-g0", "-shared", "-fPIC", "-o", library,
            f"-I{tmp_path}", f"-I{ROOT / 'csrc'}", f"-I{Path(__file__).parent}",
            "-isystem", include, "-isystem", include / "torch/csrc/api/include",
            Path(__file__).with_name("cuda_binding.cpp"),
            f"-L{include.parent / 'lib'}", "-ltorch_cpu", "-lc10",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, library],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count_cases(int(done.stdout))
