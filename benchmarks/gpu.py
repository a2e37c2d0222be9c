"""``python -m benchmarks.gpu``: all that only a GPU can tell of the CUDA kernels, in one run.

Checks first (benchmarks/gpu_checks.py); a wrong kernel is not timed. Then the layer and the
training step of a Dynamic Sparse Network beside dense at every precision, the error against float64
beside each time. About five minutes are planned on an H200; nobody has run it there yet.
``--device cpu`` tries the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import gpu_checks
from sparseconv import _ops, available_backends
from sparseconv.bench import run, timing
from sparseconv.bench.cases import CASES, Problem
from sparseconv.bench.masked_dense import masked_copy
from sparseconv.models import DSN
from sparseconv.reference import conv1d_dense, dense_weight
from sparseconv.report import Table

RESULTS = Path(__file__).parent / "results" / "gpu.json"
LENGTHS = (150, 537, 2709)
COMPUTATIONS = ("fprop", "dgrad", "wgrad")
# Dense precisions: the tensors' type, and whether float32 may be rounded to TF32.
PRECISIONS = {
    "fp32": (torch.float32, False),
    "TF32": (torch.float32, True),
    "bf16": (torch.bfloat16, False),
}
Calls = Mapping[str, Callable[[], Tensor]]
Row = dict[str, Any]


def device(name: str) -> torch.device:
    """The device, or the reason why its kernels cannot run.

    Raises:
        RuntimeError: with the reason.
    """
    state = available_backends()["cuda" if name == "cuda" else "cpp"]
    if not state.startswith("available"):
        raise RuntimeError(f"there is nothing to measure: {state}")
    return torch.device(name)


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def milliseconds(call: Callable[[], object], on: torch.device, rounds: int = 25) -> float:
    """Median time of a call; calls in a row, as many as last half a millisecond."""

    def seconds(repeats: int) -> float:
        if on.type == "cpu":
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    seconds(3)
    repeats = max(1, int(5e-4 / max(seconds(1), 1e-7)))
    return float(np.median([seconds(repeats) / repeats for _ in range(rounds)]) * 1e3)


def modes(call: Callable[[], Tensor], on: torch.device) -> dict[str, Callable[[], object]]:
    """The call as it is, and as a CUDA graph."""
    return {"eager": call} | ({} if on.type == "cpu" else {"graph": gpu_checks.graphed(call)[0]})


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


def layer_rows(length: int, on: torch.device) -> Iterator[Row]:
    """DSN's later layer on 16 series: every sparse kernel, and dense at every precision."""
    problem = gpu_checks.on(on, replace(CASES["dsn_evolved_L128"], length=length).build())
    wanted, positions = exact(problem), problem.pattern.positions().to(on)
    out_channels, in_channels, _ = problem.geometry.shape
    wide = -(-in_channels // 16) * 16, -(-out_channels // 16) * 16

    def rows(name: str, kind: str, calls: Calls, modes_of: Any = modes) -> Iterator[Row]:
        for computation, call in calls.items():
            found = call().double()
            if computation == "wgrad" and found.dim() == 3:
                found = found.flatten()[positions]
            error = float((found - wanted[computation]).norm() / wanted[computation].norm())
            for mode, timed in modes_of(call, on).items():
                yield {
                    "length": length, "computation": computation, "candidate": name,
                    "precision": kind, "mode": mode, "ms": milliseconds(timed, on), "error": error,
                }  # fmt: skip

    half = problem._replace(**{n: getattr(problem, n).bfloat16() for n in ("x", "values", "grad")})
    yield from rows("sparse", "fp32", run.sparse_calls(_ops, problem))
    yield from rows("sparse", "bf16", run.sparse_calls(_ops, half))
    for name in () if on.type == "cpu" else ("tiled", "narrow", "wide"):
        with gpu_checks.kernel(name):
            yield from rows(f"sparse {name}", "fp32", run.sparse_calls(_ops, problem))
    for kind, (dtype, tf32) in PRECISIONS.items():
        with precision(tf32):
            plain = dense_calls(problem, dtype, (in_channels, out_channels))
            yield from rows("dense", kind, plain)
            yield from rows(f"dense {wide[0]}/{wide[1]}", kind, dense_calls(problem, dtype, wide))
            yield from rows("dense slices", kind, sliced_calls(problem, dtype))
            if on.type != "cpu" and dtype == torch.float32:
                compiled = torch.compile(plain["fprop"], mode="reduce-overhead")
                yield from rows(
                    "dense", kind, {"fprop": compiled}, lambda call, _: {"compiled": call}
                )


def step_of(model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """One training step: forward, backward, Adam."""
    cuda = x.device.type == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), capturable=cuda)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = F.nll_loss(model(x), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    step()  # gradients and moments exist from here on: a graph allocates none
    return step


def step_rows(length: int, on: torch.device) -> Iterator[Row]:
    """The whole network's training step on 16 series, without the update of the pattern."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 1, length, generator=generator).to(on)
    target = torch.randint(0, 2, (16,), generator=generator).to(on)
    torch.manual_seed(0)
    sparse = DSN(1, 2, padding="centred-zeros")

    def row(name: str, kind: str, mode: str, step: Callable[[], object]) -> Row:
        ms = milliseconds(step, on, rounds=10)
        return {"length": length, "computation": "training step", "candidate": name,
                "precision": kind, "mode": mode, "ms": ms, "error": None}  # fmt: skip

    for mode, step in modes(step_of(masked_copy(sparse).to(on), x, target), on).items():
        yield row("dense", "TF32 as PyTorch's default", mode, step)
    with precision(False):
        for name, make in (("sparse", lambda: sparse), ("dense", lambda: masked_copy(sparse))):
            for mode, step in modes(step_of(make().to(on), x, target), on).items():
                yield row(name, "fp32", mode, step)
        if on.type != "cpu":
            model = torch.compile(masked_copy(sparse).to(on), mode="reduce-overhead")
            yield row("dense", "fp32", "compiled", step_of(model, x, target))


def goals(rows: Sequence[Row]) -> Table:
    """How many times faster the sparse kernels are, beside what was hoped for."""
    time_of = {
        (r["length"], r["computation"], r["candidate"], r["precision"], r["mode"]): r["ms"]
        for r in rows
    }
    wanted = [
        (length, name, mode, "dense", kind, mode, factor)
        for length in LENGTHS[1:]
        for name in COMPUTATIONS
        for mode in ("eager", "graph")
        for kind, factor in (("fp32", 3.0 if name == "wgrad" else 4.0), ("TF32", 1.2))
        if not (name == "wgrad" and kind == "TF32")
    ]
    step = "training step"
    wanted += [(150, step, "graph", "dense", "fp32", "eager", 4.0)]
    wanted += [(150, step, "graph", "dense", "fp32", "graph", 1.3)]
    wanted += [(2709, step, "graph", "dense", "fp32", "graph", 2.5)]
    lines = []
    for length, name, mode, rival, kind, rival_mode, factor in wanted:
        mine = time_of.get((length, name, "sparse", "fp32", mode))
        theirs = time_of.get((length, name, rival, kind, rival_mode))
        if mine is not None and theirs is not None:
            ratio = theirs / mine
            met = "met" if ratio >= factor else "missed"
            lines.append(
                (f"{name}, L = {length}, {mode}", f"{rival} {kind} {rival_mode}", f"{ratio:.2f}x",
                 f"{factor:g}x", met)
            )  # fmt: skip
    return Table(("sparse", "beside", "faster", "goal", ""), lines, text_columns=2)


def table(rows: Sequence[Row]) -> Table:
    columns = ("length", "computation", "candidate", "precision", "mode", "ms", "error")
    lines = [
        [*(str(r[c]) for c in columns[:5]), f"{r['ms']:.4f}",
         "" if r["error"] is None else f"{r['error']:.1e}"]
        for r in rows
    ]  # fmt: skip
    return Table(columns, lines, text_columns=5)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--cases", type=int, default=200, help="random cases to check first")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    try:
        on = device(arguments.device)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    cuda = on.type == "cuda"
    found: dict[str, Any] = {"machine": timing.machine() | {"device": available_backends()["cuda"]}}
    found["checks"] = {
        "random cases": gpu_checks.random_cases(on, "cuda" if cuda else "cpp", arguments.cases)
    }
    if cuda:
        found["checks"] |= {
            "cases of the benchmark": gpu_checks.registry(on),
            "every kernel": gpu_checks.every_kernel(on),
            "reproducible calls": gpu_checks.reproducible(on),
        }
    found["rows"] = []
    for length in arguments.lengths:
        for rows in (layer_rows, step_rows):
            for row in rows(length, on):
                found["rows"].append(row)
                _save(arguments.out, found)  # a lease may end at any time
    print(table(found["rows"]).markdown(), goals(found["rows"]).markdown(), sep="\n\n")
    if cuda:
        found["checks"]["compute-sanitizer"] = gpu_checks.sanitized()
        _save(arguments.out, found)
    print(json.dumps(found["checks"], indent=1))
    return 0


def _save(path: Path, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
