"""Call raw ops, random kernels and random graphs on tensors flush against forbidden pages.

    python tests/trust/guarded.py SEED CASES [LIBRARY]

With the library that a test makes of ``guards.cpp``, every tensor ends right before such a page,
or begins right after one: arguments, results, and what lies between. Both give the same bits.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from engines import ISAS, UNITS, blocks_case
from layouts import LAYOUTS
from op_arguments import lane_arguments, op_calls
from ordered import Conv, NormRelu, Pointwise, run_ordered
from random_banks import Problem
from test_random_graphs import test_random_graphs, test_random_graphs_without_gradients
from torch import Tensor
from torch.utils._pytree import tree_map_only

from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR
from sparseconv.ops.backends import extension
from sparseconv.testing import Case, random_case

OPS = torch.ops.sparseconv


def anew(x: Tensor) -> Tensor:
    """Copy the tensor, strides included, to new memory of just its size."""
    if x.numel() == 0:
        return x
    reach = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    memory = x.as_strided((reach,), (1,), x.storage_offset()).clone()
    return memory.as_strided(x.shape, x.stride())


def calls_of(case: Case, rng: random.Random, seed: int) -> list[tuple[Any, tuple[Any, ...]]]:
    """The ops in random layouts, and the ops around them."""
    layouts = [name for name in LAYOUTS if name != "imaginary"]  # whose memory holds -x
    x, values, bias, grad = (
        None if t is None else LAYOUTS[rng.choice(layouts)](t) for t in case.tensors()
    )
    if not case.batched:
        x, grad = x[None], grad[None]
    pattern = case.make_pattern()
    geometry = case.geometry
    calls = op_calls((x, values, bias, grad), pattern, geometry, case.length)
    calls["fprop"] += (rng.random() < 0.3,)  # with ReLU
    found: list[tuple[Any, tuple[Any, ...]]] = [(getattr(OPS, n), a) for n, a in calls.items()]
    if case.tensors().input.dtype in (torch.float32, torch.float64):
        found += [chain_of(case, rng) for _ in range(2)]
    return [*found, features_of(Problem("rocket", seed)), features_of(Problem("minirocket", seed))]


def features_of(problem: Problem) -> tuple[Any, tuple[Any, ...]]:
    """Random kernels, from the arrays of their bank on."""
    bank, x = problem.bank, torch.from_numpy(problem.series)
    rocket = bank.kind == "rocket"
    plan = extension.RocketPlan if rocket else extension.MiniRocketPlan

    def run(x: Tensor, out: Tensor, arrays: dict[str, Tensor]) -> Tensor:
        plan(arrays, *x.shape[1:]).features(x, out)
        return out

    arrays = {name: torch.tensor(array) for name, array in bank.arrays.items()}
    return run, (x, torch.full((len(x), bank.n_features), math.nan), arrays)


def chain_of(case: Case, rng: random.Random) -> tuple[Any, tuple[Any, ...]]:
    """Layers in the kernels' own order: what lies between them is memory of theirs."""
    dtype = case.tensors().input.dtype
    in_rows = dtype == torch.bfloat16  # by blocks of 16 channels
    sizes = (16, 17, 31, 33, 48) if in_rows else (1, 2, 3, 7, 8, 9, 15, 16, 17, 33)
    channels, rows = rng.choice(sizes), rng.choice(sizes)
    length = rng.choice((1, 2, 3, 7, 8, 9, 15, 16, 17, 33))
    taps = rng.choice((1, 3, 8, 39))
    replicate = rng.random() < 0.5
    padding = (0, taps - 1) if replicate else ((taps - 1) // 2, taps // 2)
    nnz = rng.randint(1, rows * channels * taps)
    pattern = KernelCSR.random((rows, channels, taps), nnz, block=16 if in_rows else 1)
    mode = "replicate" if replicate else "zeros"
    geometry = Geometry.of(pattern.shape, 1, padding, 1, 1, mode)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, values, weight, scale, shift = (t.detach().requires_grad_() for t in tensors)
        stages = [
            Conv(values, None, pattern, geometry),
            Pointwise(weight),
            NormRelu(scale, shift, None, None, 0.0, 1e-5),
        ]
        y = run_ordered(x, stages)
        grads = torch.autograd.grad(y, (x, values, weight, scale, shift), torch.ones_like(y))
        return (y.detach(), *grads)

    n = rng.choice((2, 3, 5, 70)) if in_rows else rng.randint(2, 5)  # ends of 70 are two chunks
    shapes = ((n, channels, length), (pattern.nnz,), (2, rows, 1), (2,), (2,))
    return run, tuple(torch.rand(shape, dtype=dtype) for shape in shapes)


def ordered_calls(dtype: torch.dtype, rng: random.Random) -> list[tuple[Any, tuple[Any, ...]]]:
    """The ops on tensors in the kernels' own order."""
    sizes = rng.randint(1, 5), rng.choice((2, 3, 7, 8, 9, 17, 33, 70, 150))
    return [(getattr(OPS, n), a) for n, a in lane_arguments(dtype, *sizes).items()]


def compile_graph(seed: int) -> tuple[Tensor, ...]:
    """Compute a random graph by the backend's ops; what is not within its bounds fails."""
    test_random_graphs(seed, lambda _: None)
    test_random_graphs_without_gradients(seed, lambda _: None)
    return ()


def check(op: Any, args: tuple[Any, ...], place: Callable[[bool], None]) -> None:
    """Compare the bits in memory before a guard with those after one."""

    def run(at_end: bool) -> tuple[Tensor, ...]:
        place(at_end)
        # A new thread has no scratch memory of earlier calls, which might be larger.
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as new:
            result = new.submit(op, *tree_map_only(Tensor, anew, args)).result()
        return tuple(result) if isinstance(result, tuple | list) else (result,)

    for a, b in zip(run(True), run(False), strict=True):
        assert a.equal(b), "other bits next to a guard page"


def main(seed: int, cases: int, guards: str = "") -> None:
    place = ctypes.CDLL(guards).place if guards else bool
    calls, faults = 0, []
    for number in range(seed, seed + cases):
        rng = random.Random(number)
        case = random_case(rng, n=rng.randint(1, 5), batched=True)
        work = dict.fromkeys(ISAS, (case, calls_of(case, rng, number)))
        blocks = blocks_case(rng, n=rng.randint(1, 3), batched=True)
        ops = [*calls_of(blocks, rng, number)[:3], chain_of(blocks, rng)]
        work |= dict.fromkeys(UNITS, (blocks, ops))
        own_order = rng.choice((torch.float32, torch.float64))
        graph_on = rng.choice(list(work))
        for isa, (case, ops) in work.items():
            os.environ["SPARSECONV_CPU_ISA"] = isa
            assert extension.isa() == isa
            ordered = ordered_calls(torch.bfloat16 if isa in UNITS else own_order, rng)
            graph = compile_graph, (6 * number + 5 if isa in UNITS else number,)  # see `network`
            for op, args in (*ops, *ordered, *[graph] * (isa == graph_on)):
                calls += 1
                try:
                    check(op, args, place)
                except AssertionError as error:
                    faults.append(f"{op} on {isa}, seed {number}: {error}: {case!r}")
    print(json.dumps({"calls": calls, "faults": faults, "extension": extension.__file__}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
