"""DSN's later layer on 16 series: the sparse kernels beside dense at every precision and shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_target import (
    PRECISIONS,
    Candidate,
    Target,
    compiled,
    forced_kernel,
    relative,
    stay,
    tf32,
)
from sparseconv.bench.cases import Problem
from sparseconv.bench.run import COMPUTATIONS, sparse_calls
from sparseconv.reference import conv1d_dense, dense_weight

KERNELS = ("direct", "tiled", "narrow", "wide")  # of csrc/cuda
Calls = Mapping[str, Callable[[], Tensor]]
Row = dict[str, Any]


def on(device: torch.device, problem: Problem) -> Problem:
    x, values, grad = (tensor.to(device) for tensor in problem[:3])
    return problem._replace(x=x, values=values, grad=grad)


def exact(problem: Problem) -> dict[str, Tensor]:
    """The three results in float64, by the dense path on the problem's device."""
    x, values = (t.double().requires_grad_() for t in problem[:2])
    y = conv1d_dense(x, values, problem.pattern, None, *problem.geometry[1:])
    dx, dw = torch.autograd.grad(y, (x, values), problem.grad.double())
    return {"fprop": y.detach(), "dgrad": dx, "wgrad": dw}


def dense_calls(problem: Problem, dtype: torch.dtype, channels: tuple[int, int]) -> Calls:
    """cuDNN's convolution of ``channels`` channels, in and out; zeros fill what is too many."""
    (left, _), (out_channels, in_channels, _) = problem.geometry.padding, problem.geometry.shape
    more_in, more_out = channels[0] - in_channels, channels[1] - out_channels
    x = F.pad(problem.x, (0, 0, 0, more_in)).to(dtype)
    grad = F.pad(problem.grad, (0, 0, 0, more_out)).to(dtype)
    weight = dense_weight(problem.values, problem.pattern)
    weight = F.pad(weight, (0, 0, 0, more_in, 0, more_out)).to(dtype)
    stay(x, grad, weight)

    def backward(*wanted: bool) -> Any:
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, [1], [left], [1], False, [0], 1, [*wanted, False]
        )

    return {
        "fprop": lambda: F.conv1d(x, weight, padding=left)[:, :out_channels],
        "dgrad": lambda: backward(True, False)[0][:, :in_channels],
        "wgrad": lambda: backward(False, True)[1][:out_channels, :in_channels],
    }


def sliced_calls(problem: Problem, dtype: torch.dtype) -> Calls:
    """Three dense convolutions, one for each region of the pattern: it has no weight elsewhere."""
    left, right = problem.geometry.padding
    out_channels, _, kernel_size = problem.geometry.shape
    length = problem.x.shape[2]
    weight = dense_weight(problem.values, problem.pattern).to(dtype)
    padded = F.pad(problem.x, (left, right)).to(dtype)
    parts = []
    for i in range(3):
        rows = slice(out_channels // 3 * i, out_channels // 3 * (i + 1))
        taps = kernel_size // 3 * (i + 1)
        assert not weight[rows, :, taps:].any(), "a weight outside its region"
        grad = problem.grad[:, rows].to(dtype)
        parts.append((padded[:, :, : length + taps - 1], weight[rows, :, :taps], grad))
        stay(*parts[-1])

    def dgrad() -> Tensor:
        full = torch.zeros_like(padded)
        for x, w, grad in parts:
            full[:, :, : x.shape[2]] += F.conv_transpose1d(grad, w)
        return full[:, :, left : left + length]

    def wgrad() -> Tensor:
        whole = torch.zeros_like(weight)
        rows = 0
        for x, w, grad in parts:
            whole[rows : rows + len(w), :, : w.shape[2]] = torch.ops.aten.convolution_backward(
                grad, x, w, None, [1], [0], [1], False, [0], 1, [False, True, False]
            )[1]
            rows += len(w)
        return whole

    return {
        "fprop": lambda: torch.cat([F.conv1d(x, w) for x, w, _ in parts], 1),
        "dgrad": dgrad,
        "wgrad": wgrad,
    }


class Form(NamedTuple):
    """One way to compute the layer."""

    name: str
    precision: str
    calls: Calls
    compiled: bool = False


class Layer:
    """The problem at one length, what it should give, and the rows made of it."""

    def __init__(self, target: Target, length: int, rounds: int) -> None:
        self.target, self.rounds = target, rounds
        self.problem = on(target.device, target.sizes.layer(length).build())
        self.half = self.problem._replace(
            **{name: getattr(self.problem, name).bfloat16() for name in ("x", "values", "grad")}
        )
        self.wanted = exact(self.problem)
        self.positions = self.problem.pattern.positions().to(target.device)

    def error(self, computation: str, result: Tensor) -> float:
        if computation == "wgrad" and result.dim() == 3:  # dense: of the active weights
            result = result.flatten()[self.positions]
        return relative(result, self.wanted[computation])

    def sparse(self, kernel: str) -> Iterator[Form]:
        for precision, problem in (("fp32", self.problem), ("bf16", self.half)):
            yield Form(kernel, precision, sparse_calls(self.target.ops(kernel), problem))

    def dense(self, precision: str) -> Iterator[Form]:
        """As it is, with channels that tensor cores like, and without the region's zeros."""
        out_channels, in_channels, _ = self.problem.geometry.shape
        wide = -(-in_channels // 16) * 16, -(-out_channels // 16) * 16
        dtype, _ = PRECISIONS[precision]
        for name, channels in (
            ("dense", (in_channels, out_channels)),
            (f"dense {wide[0]}/{wide[1]}", wide),
        ):
            yield Form(name, precision, dense_calls(self.problem, dtype, channels))
        yield Form("dense slices", precision, sliced_calls(self.problem, dtype))

    def row(self, kind: str, computation: str, forms: Iterable[Form]) -> Row:
        """Time one computation of some forms in turns; say why not, where dense cannot run."""
        candidates, errors, absent = {}, {}, {}
        for form in forms:
            call, (_, allowed) = form.calls[computation], PRECISIONS[form.precision]
            name = f"{form.name} {form.precision}" + " compiled" * form.compiled
            try:
                with tf32(allowed):
                    error = self.error(computation, call())
                    modes = {"": call} if form.compiled else self.target.modes(call)
            except RuntimeError as reason:
                if form.name == self.target.first:
                    raise
                absent[name] = str(reason)
                continue
            errors[name] = error
            for mode, timed in modes.items():
                candidates[f"{name} {mode}".rstrip()] = Candidate(timed, allowed)
        return self._row(kind, computation, candidates, errors) | {"absent": absent}

    def _row(
        self,
        kind: str,
        computation: str,
        candidates: dict[str, Candidate],
        errors: dict[str, float],
    ) -> Row:
        return {
            "kind": kind,
            "computation": computation,
            "length": self.problem.x.shape[2],
            "batch": len(self.problem.x),
            "samples_ms": self.target.samples(candidates, rounds=self.rounds),
            "error": errors,
        }

    def rows(self) -> Iterator[Row]:
        """The kernels that are judged, beside every dense form at every precision."""
        dense = [form for precision in PRECISIONS for form in self.dense(precision)]
        for computation in COMPUTATIONS:
            yield self.row("layer", computation, [*self.sparse(self.target.first), *dense])

    def triton_rows(self) -> Iterator[Row]:
        forms = [*self.sparse(self.target.first), *self.sparse("triton")]
        for computation in COMPUTATIONS:
            yield self.row("triton", computation, forms)

    def kernel_rows(self) -> Iterator[Row]:
        """Each CUDA kernel forced, as a graph: it keeps the kernel that it was captured with."""
        calls = sparse_calls(self.target.ops(self.target.first), self.problem)
        for computation in COMPUTATIONS:
            candidates, errors = {}, {}
            for name in KERNELS:
                with forced_kernel(name):
                    replay, result = self.target.capture(calls[computation])
                replay()
                errors[name] = self.error(computation, result)
                candidates[name] = Candidate(replay)
            candidates["chosen"] = Candidate(self.target.capture(calls[computation])[0])
            yield self._row("kernels", computation, candidates, errors)

    def compiled_row(self, precision: str, computation: str) -> Row:
        """What torch.compile makes of each dense form of one computation."""
        torch.compiler.reset()
        forms = [
            Form(form.name, precision, {computation: compiled(form.calls[computation])}, True)
            for form in self.dense(precision)
        ]
        sparse = next(self.sparse(self.target.first))
        return self.row("compiled", computation, [sparse, *forms])
