"""One tree's side of ``benchmarks.gates.compare``.

``worker.py TREE ROWS RESULTS THREADS CORE ...`` uses only public names of ``sparseconv``, so it
runs on any commit's tree. The first line of output names the kernels. A request is a line of JSON,
``[row, computation, repeats]``; the answer is seconds per call.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sparseconv as sc

Calls = dict[str, Callable[[], Tensor]]


def layer(x: Tensor, values: Tensor, grad: Tensor, mask: Tensor, options: dict[str, Any]) -> Calls:
    """Return the three computations; autograd computes only the requested gradient."""
    pattern = sc.KernelCSR.from_mask(mask)

    def convolve(x: Tensor, values: Tensor) -> Tensor:
        return sc.sparse_conv1d(x, values, pattern, **options, backend="cpp")

    x_leaf, values_leaf = (t.clone().requires_grad_() for t in (x, values))
    y_of_x, y_of_values = convolve(x_leaf, values), convolve(x, values_leaf)
    return {
        "fprop": lambda: convolve(x, values),
        "dgrad": lambda: torch.autograd.grad(y_of_x, x_leaf, grad, retain_graph=True)[0],
        "wgrad": lambda: torch.autograd.grad(y_of_values, values_leaf, grad, retain_graph=True)[0],
    }


def call(x: Tensor, values: Tensor, grad: Tensor, mask: Tensor, options: dict[str, Any]) -> Calls:
    """Return calls to a tiny layer, where the overhead exceeds the kernel's time."""
    pattern = sc.KernelCSR.from_mask(mask)
    module = sc.SparseConv1d(
        x.shape[1], *mask.shape[::2], **options, bias=False, pattern=pattern, backend="cpp"
    )
    module.load_state_dict({**module.state_dict(), "values": values})

    compiled = torch.compile(module)

    def forward(call: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return call(x)

    return {
        "forward": lambda: forward(module),
        "forward, recording gradients": lambda: module(x),
        "forward, compiled": lambda: forward(compiled),
    }


def step(network: dict[str, Any], state: dict[str, Tensor], x: Tensor, y: Tensor) -> Calls:
    """Return a DSN's training step; the pattern changes after every 50th step."""
    torch.manual_seed(0)
    model = sc.models.DSN(**network)
    model.load_state_dict(state)
    # So slow that the weights stay as they are, however many steps are timed.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-9)
    scheduler = sc.DSTScheduler(model, optimizer, update_every=50, end_step=10**9)

    def train() -> Tensor:
        optimizer.zero_grad()
        loss = F.nll_loss(model(x), y)
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss.detach()

    return {"training step": train}


KINDS = {"layer": layer, "call": call, "step": step}


def main() -> None:
    tree, rows_file, results_file, threads, *cores = sys.argv[1:]
    # Ctrl-C reaches the whole process group; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if not Path(str(sc.__file__)).is_relative_to(tree):
        sys.exit(f"expected sparseconv from {tree}, but imported {sc.__file__}")
    os.sched_setaffinity(0, map(int, cores))
    torch.set_num_threads(int(threads))
    # One thread's own time leaves out what other tenants of the core take in between.
    clock = time.process_time if threads == "1" else time.perf_counter
    rows = {name: KINDS[kind](**data) for name, kind, data in torch.load(rows_file)}
    results = {name: {c: f().detach() for c, f in calls.items()} for name, calls in rows.items()}
    torch.save(results, results_file)
    gc.disable()
    print(sc.available_backends()["cpp"], file=answers)
    for request in sys.stdin:
        name, computation, count = json.loads(request)
        timed = rows[name][computation]
        timed()  # the other worker's turn has cooled the caches
        start = clock()
        for _ in range(count):
            timed()
        print((clock() - start) / count, file=answers)


if __name__ == "__main__":
    main()
