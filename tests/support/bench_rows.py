"""Small cases, and rows of a benchmark as the command writes them, with plausible figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.bench.cases import CASES, Case
from benchmarks.bench.run import FACTS

RATIOS = {"conv1d": 10.0, "conv2d_channels_last": 7.0, "fft_prepared": 4.0}


def shrunk(case: Case, n: int = 2, outputs: int = 40) -> Case:
    """The same case on fewer and shorter series."""
    surplus = max(0, (case.output_length - outputs) * case.stride)
    return replace(case, n=min(case.n, n), length=max(1, case.length - surplus))


def row(name: str, computation: str = "fprop", threads: int = 1, **fields: Any) -> dict[str, Any]:
    """A row of a case; ``fields`` of floats named like baselines are its only ratios."""
    case = CASES[name]
    pattern, outputs = case.make_pattern(), case.n * case.output_length
    found = {key: fields.pop(key) for key in list(fields) if isinstance(fields[key], float)}
    ms = 1e-6 * (1 + pattern.nnz) * outputs
    return {
        "case": name, "computation": computation, "threads": threads, "isa": "avx512",
        **{key: getattr(case, key) for key in FACTS},
        "batch": case.n, "nnz": pattern.nnz, "density": pattern.density, "gflops": 99.6,
        "flops": 2 * pattern.nnz * outputs, "dense_flops": 2 * pattern.numel * outputs,
        "share_of_peak": 0.9, "absent": {}, "ms": {"sparse": ms},
        "ratio": {key: [x, 0.9 * x, 1.1 * x] for key, x in (found or RATIOS).items()},
    } | fields  # fmt: skip


def network(mode: str, length: int, **fields: Any) -> dict[str, Any]:
    """A row of the network; ``fields`` of floats are its ratios except ``masked_dense``."""
    found = {key: fields.pop(key) for key in list(fields) if isinstance(fields[key], float)}
    return {
        "model": "DSN", "mode": mode, "length": length, "batch": 16, "in_channels": 1, "threads": 1,
        "ms": {"sparse": 2.0}, "settings": {"dense_best": "jit"}, "absent": {},
        "ratio": {key: [x, x, x] for key, x in ({"masked_dense": 9.0} | found).items()},
    } | fields  # fmt: skip
