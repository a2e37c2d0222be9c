"""``python -m benchmarks.kernels``: the three sparse kernels beside PyTorch's dense convolution.

Every case is checked against float64 first, in the same process; a case that fails stops the run
before any figure of it is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseconv import KernelCSR, _ops
from sparseconv._backends import resolve_backend
from sparseconv.bench import timing
from sparseconv.bench.cases import CASES, Case, Problem
from sparseconv.functional import Geometry
from sparseconv.machine import threads
from sparseconv.reference import conv1d_dense, dense_weight
from sparseconv.report import Table
from sparseconv.testing import error_bound

COMPUTATIONS = ("fprop", "dgrad", "wgrad")


class WrongResultError(AssertionError):
    """A kernel left its computed error bound, so its speed means nothing."""


class Kernels(Protocol):
    """The three computations, as ``sparseconv._ops`` has them."""

    def fprop(
        self, x: Tensor, values: Tensor, bias: Tensor | None, pattern: KernelCSR,
        geometry: Geometry, /,
    ) -> Tensor: ...  # fmt: skip

    def dgrad(
        self, grad: Tensor, values: Tensor, pattern: KernelCSR, geometry: Geometry,
        input_length: int, /,
    ) -> Tensor: ...  # fmt: skip

    def wgrad(
        self, grad: Tensor, x: Tensor, pattern: KernelCSR, geometry: Geometry, /
    ) -> Tensor: ...


def sparse_calls(kernels: Kernels, problem: Problem) -> dict[str, Callable[[], Tensor]]:
    x, values, grad, pattern, geometry = problem
    return {
        "fprop": lambda: kernels.fprop(x, values, None, pattern, geometry),
        "dgrad": lambda: kernels.dgrad(grad, values, pattern, geometry, x.shape[2]),
        "wgrad": lambda: kernels.wgrad(grad, x, pattern, geometry),
    }


def dense_calls(problem: Problem) -> dict[str, Callable[[], Tensor]]:
    """PyTorch on the dense weight; each gradient alone, as autograd would ask for it."""
    x, values, grad, pattern, geometry = problem
    weight = dense_weight(values, pattern)
    (padding, right), stride, dilation = geometry.padding, geometry.stride, geometry.dilation
    if right != padding or geometry.groups != 1 or geometry.padding_mode != "zeros":
        raise ValueError(f"the dense rival is one convolution call, which cannot do {geometry}")

    def backward(wanted: int) -> Tensor:
        mask = [wanted == i for i in range(3)]
        result: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            grad, x, weight, None, [stride], [padding], [dilation], False, [0], 1, mask
        )
        return result[wanted]

    return {
        "fprop": lambda: F.conv1d(x, weight, None, stride, padding, dilation),
        "dgrad": lambda: backward(0),
        "wgrad": lambda: backward(1),
    }


def check(kernels: Kernels, problem: Problem) -> None:
    """Compare all three computations with float64, within the bound computed for each output.

    Raises:
        WrongResultError: some output is outside.
    """
    data = problem[:3]
    exact = _double(problem, *data)
    # On magnitudes it adds up what can be rounded, on ones it counts the terms.
    magnitude = _double(problem, *(t.abs() for t in data))
    terms = _double(problem, *(torch.ones_like(t) for t in data))
    for name, call in sparse_calls(kernels, problem).items():
        bound = error_bound(exact[name], magnitude[name], terms[name], torch.float32)
        error = (call().double() - exact[name]).abs()
        if not bool((error <= bound).all()):  # also when an output is NaN
            worst = float((error / bound.clamp_min(torch.finfo(torch.float64).tiny)).max())
            raise WrongResultError(f"{name} is wrong: {worst:.3g} times its error bound")


def _double(problem: Problem, x: Tensor, values: Tensor, grad: Tensor) -> dict[str, Tensor]:
    x, values = x.double().requires_grad_(), values.double().requires_grad_()
    y = conv1d_dense(x, values, problem.pattern, None, *problem.geometry[1:])
    dgrad, wgrad = torch.autograd.grad(y, (x, values), grad.double())
    return {"fprop": y.detach(), "dgrad": dgrad, "wgrad": wgrad}


def measure(case: Case, kernels: Kernels, *, rounds: int = 30) -> list[dict[str, Any]]:
    """Check a case, then time its computations; one row each.

    Raises:
        WrongResultError: a result is wrong; nothing was timed.
    """
    problem = case.build()
    check(kernels, problem)
    sparse, dense = sparse_calls(kernels, problem), dense_calls(problem)
    outputs = case.batch * case.length
    rows = []
    for name in COMPUTATIONS:
        times = timing.interleave({"sparse": sparse[name], "dense": dense[name]}, rounds=rounds)
        ours, theirs = timing.interval(times["sparse"]), timing.interval(times["dense"])
        rows.append(
            {
                "case": case.name,
                "computation": name,
                "threads": torch.get_num_threads(),
                "nnz": problem.pattern.nnz,
                "density": problem.pattern.density,
                "sparse_ms": ours.median * 1e3,
                "dense_ms": theirs.median * 1e3,
                "sparse_gflops": 2e-9 * problem.pattern.nnz * outputs / ours.median,
                "dense_gflops": 2e-9 * problem.pattern.numel * outputs / theirs.median,
                "ratio": timing.ratio(times, "dense", "sparse"),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    return Table(
        ("case", "", "threads", "sparse ms", "dense ms", "sparse GFLOP/s", "dense GFLOP/s",
         "dense / sparse"),
        [
            (
                row["case"],
                row["computation"],
                str(row["threads"]),
                f"{row['sparse_ms']:.3f}",
                f"{row['dense_ms']:.3f}",
                f"{row['sparse_gflops']:.0f}",
                f"{row['dense_gflops']:.0f}",
                str(timing.Interval(*row["ratio"])),
            )
            for row in rows
        ],
        text_columns=2,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, help="also write the rows and the machine as JSON")
    arguments = parser.parse_args(argv)
    if reason := cpp_or_reason():
        print(reason, file=sys.stderr)
        return 1
    rows = []
    for name in arguments.cases:
        for count in arguments.threads:
            with threads(count):
                try:
                    rows += measure(CASES[name], _ops, rounds=arguments.rounds)
                except WrongResultError as error:
                    print(f"{name}, {count} threads: {error}", file=sys.stderr)
                    return 1
    write(table(rows), rows, arguments.out)
    return 0


def cpp_or_reason() -> str:
    """Why the C++ kernels cannot run here; empty if they can."""
    try:
        resolve_backend("cpp", torch.device("cpu"))
    except RuntimeError as error:
        return f"there is nothing to measure: {error}"
    return ""


def write(shown: Table, rows: Sequence[dict[str, Any]], out: Path | None) -> None:
    """Print a benchmark's table and the machine's facts; write both as JSON if a path is given."""
    machine = timing.machine()
    print("\n".join(f"{key}: {value}" for key, value in machine.items()), end="\n\n")
    print(shown.markdown())
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": machine, "rows": list(rows)}, indent=1) + "\n")
        print(f"\nwritten to {out}")


if __name__ == "__main__":
    raise SystemExit(main())
