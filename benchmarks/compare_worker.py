"""One tree's side of ``benchmarks.compare``: computes on request, and times itself.

It uses the public names of ``sparseconv`` alone, so that it runs on the tree of any commit. A
request is a line ``case computation repeats``; the answer is a line with seconds per call. The
first line, before any request, tells which instruction set runs.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sparseconv as sc


def calls(problem: dict[str, Any]) -> dict[str, Callable[[], Tensor]]:
    x, values, grad = (problem[name] for name in ("x", "values", "grad"))
    pattern, options = sc.KernelCSR.from_mask(problem["mask"]), problem["options"]

    def convolve(x: Tensor, values: Tensor) -> Tensor:
        return sc.sparse_conv1d(x, values, pattern, **options, backend="cpp")

    # Autograd computes only the gradients that someone asked for.
    x_leaf, values_leaf = (t.clone().requires_grad_() for t in (x, values))
    y_of_x, y_of_values = convolve(x_leaf, values), convolve(x, values_leaf)
    return {
        "fprop": lambda: convolve(x, values),
        "dgrad": lambda: torch.autograd.grad(y_of_x, x_leaf, grad, retain_graph=True)[0],
        "wgrad": lambda: torch.autograd.grad(y_of_values, values_leaf, grad, retain_graph=True)[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tree", type=Path, required=True, help="where sparseconv must come from")
    parser.add_argument("--problems", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True, help="where the results are put")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cpus", type=int, nargs="*", default=[], help="cores to run on")
    arguments = parser.parse_args()
    # Ctrl-C reaches the whole process group; the parent ends its workers in its own time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from sparseconv import _C

    for module in (sc, _C):
        if not Path(str(module.__file__)).is_relative_to(arguments.tree):
            sys.exit(f"{module.__name__} was to come from {arguments.tree}: {module.__file__}")
    if arguments.cpus:
        os.sched_setaffinity(0, arguments.cpus)
    torch.set_num_threads(arguments.threads)
    # One thread's own time leaves out what other tenants of the core take in between.
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    problems = {name: calls(p) for name, p in torch.load(arguments.problems).items()}
    torch.save({k: {c: f() for c, f in v.items()} for k, v in problems.items()}, arguments.results)
    gc.disable()
    print(_C.isa(), file=answers)
    for request in sys.stdin:
        case, computation, repeats = request.split()
        call, count = problems[case][computation], int(repeats)
        call()  # the other worker's turn has cooled the caches
        start = clock()
        for _ in range(count):
            call()
        print((clock() - start) / count, file=answers)


if __name__ == "__main__":
    main()
