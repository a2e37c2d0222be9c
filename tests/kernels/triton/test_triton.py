"""The Triton backend on a machine without a GPU: interpreted, compiled, and when it runs."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from block_cases import BlockCase
from child import run
from packaging.version import Version

import sparseconv as sc
from sparseconv.ops import backends
from sparseconv.testing import Case

HERE = Path(__file__).parent
TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
}
DSN = Case(16, 4, 6, 39, 300, padding=(0, 38), padding_mode="replicate")
FULL_OPTIONS = Case(3, 4, 6, 5, 70, 2, (3, 4), 2, 2, "circular")
BLOCKS = BlockCase(16, 47, 141, 39, 300, padding=(0, 38), padding_mode="replicate")
LARGE_BLOCKS = BlockCase(2, 48, 96, 5, 1100, 2, (3, 4), 2, block=(48, 48))

missing = backends._load_triton()[1]
needs_triton = pytest.mark.skipif(bool(missing), reason=missing)
too_new = Version(version("numpy")) >= Version("2.4")
needs_interpreter = pytest.mark.skipif(
    bool(missing) or (too_new and Version(import_module("triton").__version__) < Version("3.7")),
    reason=missing or "the interpreter of Triton before 3.7 asks NumPy for what 2.4 refuses",
)
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
)


@pytest.mark.promise("P1")
@needs_interpreter
def test_interpreted(pytestconfig, count_cases):
    """The cases of other files, in a process whose Triton interprets."""
    files = [str(HERE / name) for name in ("triton_cases.py", "test_triton_blocks.py")]
    long = ["--campaign", f"--share={pytestconfig.getoption('--share')}"]
    said = run(
        [sys.executable, "-m", "pytest", *long * pytestconfig.getoption("--campaign"), *files],
        env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=HERE.parents[2],
    )  # fmt: skip
    count_cases(int(re.findall(r"cases executed: (\d+)", said)[0]))


class Recorder:
    """Stands for a kernel and keeps what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.calls = kernel, []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **kwargs: self.calls.append((args, kwargs))

    def compiled(self, target: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Compile for the arguments of a launch, specialized as at a launch."""
        import triton
        from triton.compiler import ASTSource

        params = self.kernel.params
        options = options | {"WIDEN": False} if "WIDEN" in options else options
        arguments = dict(zip(self.kernel.arg_names, args, strict=False))
        arguments |= {n: options[n] for n in self.kernel.arg_names if n in options}
        signature, constants = {}, {}
        for param in params:
            value = arguments.pop(param.name)
            if isinstance(value, torch.Tensor):
                signature[param.name] = f"*{TYPES[value.dtype]}"
            elif (
                param.is_constexpr or value is None or (value == 1 and not param.do_not_specialize)
            ):
                signature[param.name], constants[param.name] = "constexpr", value
            else:
                signature[param.name] = "i32"
        assert not arguments
        left = {k: v for k, v in options.items() if k not in self.kernel.arg_names}
        source = ASTSource(self.kernel, signature, constants)
        return triton.compile(source, target=target, options=left)


@needs_triton
@pytest.mark.parametrize(
    ("case", "dtype", "capability"),
    [
        (DSN, torch.float32, 90),
        (FULL_OPTIONS, torch.float16, 80),
        (BLOCKS, torch.float32, 90),
        *(
            pytest.param(*values, marks=pytest.mark.campaign("Triton compiles it for seconds"))
            for values in (
                (DSN, torch.float32, 80),
                (DSN, torch.bfloat16, 90),
                (FULL_OPTIONS, torch.float32, 80),
                (FULL_OPTIONS, torch.float64, 90),
                (BLOCKS, torch.bfloat16, 90),
                (LARGE_BLOCKS, torch.float32, 80),
                (LARGE_BLOCKS, torch.bfloat16, 90),
            )
        ),
    ],
    ids=lambda value: getattr(value, "padding_mode", str(value).removeprefix("torch.")),
)
def test_compiled_ahead_of_time(case, dtype, capability, monkeypatch, count_cases):
    """Every kernel compiles to machine code."""
    from triton.backends.compiler import GPUTarget

    from sparseconv.ops.triton import block_kernels, kernels, launch

    monkeypatch.setattr(launch, "multiplies_blocks", lambda dtype, device: True)
    blocks = isinstance(case, BlockCase)
    module = block_kernels if blocks else kernels
    names = ("correlate", "wgrad", "pack")[: 2 + blocks]
    recorders = {name: Recorder(getattr(module, name)) for name in names}
    for name, recorder in recorders.items():
        monkeypatch.setattr(module, name, recorder)
    x, values, bias, grad = (t.to(dtype) for t in case.tensors())
    pattern = case.make_pattern()
    # On CPU tensors, because nothing is launched; the plans are the same.
    numbers = case.geometry
    context = pattern.crow_indices, pattern.col_indices, numbers
    launch.fprop(x, values, bias, *context, case is FULL_OPTIONS)
    launch.dgrad(grad, values, *context, case.length)
    launch.wgrad(grad, x, *context)
    assert [len(r.calls) for r in recorders.values()] == [2, 1, 2][: len(names)]

    for name, recorder in recorders.items():
        for args, options in recorder.calls:
            binary = recorder.compiled(GPUTarget("cuda", capability, 32), args, options)
            assert binary.asm["cubin"], name
            count_cases(1)


@pytest.mark.promise("P10")
@needs_triton
def test_cpu_tensors_are_refused():
    pattern = sc.KernelCSR.full((1, 1, 1))
    with pytest.raises(RuntimeError, match="cpu"):
        sc.sparse_conv1d(torch.ones(1, 1, 3), torch.ones(1), pattern, backend="triton")
    x, values, crow = torch.ones(1, 1, 3), torch.ones(1), torch.tensor([0, 1]).int()
    geometry = [1, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1]
    with pytest.raises(RuntimeError, match=r"runs on CUDA tensors.*TRITON_INTERPRET=1"):
        torch.ops.sparseconv.triton_fprop(x, values, None, crow, crow[:1], geometry)
    if not torch.cuda.is_available():
        assert sc.available_backends()["triton"] == "no GPU: torch sees no CUDA device"
