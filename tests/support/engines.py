"""What the differential tests run: each instruction set of the CPU, and each backend of a GPU."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparseconv import KernelCSR, available_backends, sparse_conv1d
from sparseconv.core.geometry import Geometry
from sparseconv.ops import gpu_plans
from sparseconv.ops.backends import extension
from sparseconv.ops.schemas import KERNELS
from sparseconv.testing import Case, Expected, Tensors, expected, random_case

NAMES = ("fprop", "dgrad", "wgrad")
LISTED = extension.isas() if extension is not None else []
# Those with kernels for blocks of channels, and their twins in plain C++ for every CPU.
TWINS = {"amx": "amx-emulated", "avx512bf16": "avx512bf16-emulated"}
ISAS = [isa for isa in LISTED if isa not in TWINS]
UNITS = [*TWINS.values(), *(isa for isa in LISTED if isa in TWINS)]


class Engine(NamedTuple):
    """One implementation of the kernels, and the device that it runs on."""

    backend: str
    device: str = "cpu"
    isa: str = ""

    def put(self, tensors: Tensors) -> Tensors:
        return Tensors(*(None if t is None else t.to(self.device) for t in tensors))

    def backend_for(self, geometry: Geometry, dtype: torch.dtype) -> str:
        """What to ask for: what the CUDA kernels do not compute, ``"auto"`` leaves to Triton's."""
        in_cuda = dtype != torch.float64 and gpu_plans.cuda_computes(geometry)
        return "auto" if self.backend == "cuda" and not in_cuda else self.backend

    @property
    def kernels(self) -> Any:
        """The three computations on CPU tensors, wherever they run."""

        def call(name: str, *args: Any) -> Tensor:
            (geometry,) = (a for a in args if isinstance(a, Geometry))
            asked = self.backend_for(geometry, args[0].dtype)
            op = getattr(KERNELS["triton" if asked == "auto" else asked], name)
            return op(*op_arguments(args, self.device)).cpu()

        return SimpleNamespace(**{name: partial(call, name) for name in NAMES})


def op_arguments(args: Iterable[Any], device: str = "cpu") -> list[Any]:
    """What an op takes: two tensors in the place of a pattern, numbers in that of a geometry."""
    found: list[Any] = []
    for a in args:
        if isinstance(a, KernelCSR):
            found += a.on(torch.device(device))
        elif isinstance(a, Tensor):
            found.append(a.to(device))
        else:
            found.append(a)
    return found


def blocks_case(rng: random.Random, **fixed: Any) -> Case:
    """Draw a case that the kernels for blocks compute."""
    groups = rng.choice((1, 1, 1, 2))
    sizes = (16, 32) if groups > 1 else (16, 17, 31, 33, 47, 48)
    sizes = {name: groups * rng.choice(sizes) for name in ("in_channels", "out_channels")}
    drawn = {"dtype": "bfloat16", "groups": groups, **sizes, "pattern": "blocks"}
    return random_case(rng, **(drawn | fixed))


Engines = Callable[[], Iterator[Engine]]


def on_gpu() -> list[Engine]:
    """Every backend that runs on CUDA tensors here."""
    states = available_backends()
    names = [n for n in ("cuda", "triton") if states.get(n, "").startswith("available")]
    return [Engine(name, "cuda") for name in names]


def compute(case: Case, tensors: Tensors, engine: Engine) -> tuple[Tensor, Tensor, Tensor]:
    """Run the three computations: output, gradient of the input, gradient of the values."""
    x, values, bias, grad = engine.put(tensors)
    pattern = case.make_pattern()
    backend = engine.backend_for(case.geometry, x.dtype)
    x, values = x.detach().requires_grad_(), values.detach().requires_grad_()
    y = sparse_conv1d(x, values, pattern, bias, **case.options, backend=backend)
    dx, dw = torch.autograd.grad(y, (x, values), grad)
    return y.detach().cpu(), dx.cpu(), dw.cpu()


def assert_within(
    found: Iterable[Tensor], wanted: list[Expected], engine: Engine, case: Case
) -> None:
    """Compare results of an engine with what is expected of them."""
    dtype = getattr(torch, case.dtype)
    # Triton's interpreter cuts bfloat16 off where a GPU rounds: up to one unit, not half.
    interpreted = engine[:2] == ("triton", "cpu") and dtype == torch.bfloat16
    cut = torch.finfo(dtype).eps / 2 if interpreted else 0.0
    for i, (got, (exact, bound)) in enumerate(zip(found, wanted, strict=True)):
        assert (got.shape, got.dtype) == (exact.shape, dtype), (i, engine, case)
        limit = bound + cut * (exact.abs() + bound) if cut else bound
        error = (got.cpu().double() - exact).abs()
        assert (error <= limit).all(), f"result {i} on {engine}, {error.max():.3g} off: {case!r}"


def check(case: Case, engines: Engines, wanted: list[Expected] | None = None) -> None:
    """Compare what every engine computes with the oracle, or with what is given."""
    tensors = case.tensors()
    wanted = expected(case, tensors) if wanted is None else wanted
    for engine in engines():
        assert_within(compute(case, tensors, engine), wanted, engine, case)
