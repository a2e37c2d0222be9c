"""A made-up benchmark document: no figure in it was measured, and nothing but tests may use it."""

from __future__ import annotations

from typing import Any

import numpy as np

RIVALS = {"conv1d": 1.0, "conv2d_channels_last": 0.75, "masked_dense": 1.3, "im2col_csr": 1.1,
          "fft": 1.6}  # fmt: skip
PEAK = 250.0


def row(case: str, suite: str, computation: str, rng: Any, **changes: Any) -> dict[str, Any]:
    """One row whose figures agree with each other."""
    r: dict[str, Any] = {
        "case": case, "suite": suite, "computation": computation, "dtype": "float32",
        "threads": 1, "isa": "avx512", "batch": 16, "in_channels": 47, "out_channels": 141,
        "kernel_size": 39, "length": 128, "stride": 1, "dilation": 1, "groups": 1,
        "density": 0.1333,
    } | changes  # fmt: skip
    numel = r["in_channels"] * r["out_channels"] * r["kernel_size"]
    nnz = max(1, round(r["density"] * numel))
    outputs = r["batch"] * r["length"]
    flops, dense = 2 * nnz * outputs, 2 * numel * outputs
    bytes_ = 4 * (outputs * (r["in_channels"] + r["out_channels"]) + 2 * nnz)
    peak = PEAK * r["threads"] * (0.5 if r["isa"] == "avx2" else 1)
    share = {"fprop": 0.8, "dgrad": 0.76, "wgrad": 0.6}[computation] * rng.uniform(0.9, 1.02)
    share *= min(1.0, 0.25 + flops / 4e7)
    share = min(share, 0.9 * 20 * flops / bytes_ / peak)
    sparse = flops / (share * peak) / 1e6
    base = (dense / (0.62 * peak) / 1e6 + 0.02) / sparse
    ratio = {
        rival: [float(base * factor * x) for x in (1, 0.97, 1.04)]
        for rival, factor in RIVALS.items()
    }
    return r | {
        "nnz": nnz, "output_length": r["length"], "flops": flops, "dense_flops": dense,
        "bytes": bytes_, "ratio": ratio, "gflops": share * peak, "share_of_peak": share,
        "ms": {"sparse": sparse} | {rival: sparse * value[0] for rival, value in ratio.items()},
        "share_of_roof": share * peak / min(peak, 20 * flops / bytes_),
        "drift": float(rng.uniform(0.97, 1.05)), "checked": "float64 bound",
    }  # fmt: skip


def document(counts: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """Every suite, two threads, a second ISA, growth, networks with parts, goals."""
    rng = np.random.default_rng(0)
    rows = []

    def add(case: str, suite: str, **changes: Any) -> None:
        for computation in ("fprop", "dgrad", "wgrad"):
            for threads in counts:
                rows.append(row(case, suite, computation, rng, threads=threads, **changes))

    for pattern in ("dsn_prefix", "dsn_evolved"):
        for length in (24, 128, 512, 1024, 2709):
            add(f"{pattern}_L{length}", "layer", length=length)
            add(f"{pattern}_length_{length}", "length", length=length)
    for length in (24, 128, 512, 2048):
        for density in (0.02, 0.05, 0.1333, 0.3, 0.5, 0.75, 0.9, 1.0):
            add(f"random_{density}_L{length}", "density", density=density, length=length)
    for channels in (1, 2, 4, 8, 16, 47, 128, 512):
        for density in (0.05, 0.1333, 0.3, 0.6, 0.9):
            add(f"c{channels}_{density}", "channels", in_channels=channels,
                out_channels=channels * 3, density=density)  # fmt: skip
    for taps in (1, 3, 9, 39, 128):
        add(f"k{taps}", "kernel", kernel_size=taps)
    for batch in (1, 2, 5, 16, 17, 64):
        add(f"n{batch}", "batch", batch=batch)
    add("stride2_dilation4_groups_and_a_long_name", "options", stride=2, dilation=4)
    add("one_dense_row", "adversarial")
    add("trained_first_N5_L150", "trained", batch=5, length=150)
    rows.append(row("dsn_evolved_L128", "isa", "fprop", rng, isa="avx2"))
    rows.append(row("dsn_evolved_L128", "dtype", "fprop", rng, dtype="float64"))
    rows[-1]["share_of_peak"] = rows[-1]["share_of_roof"] = None
    del rows[-1]["ratio"]["fft"]

    peaks = [
        {"threads": threads, "isa": isa, "dtype": "float32", "fma_gflops": width * threads,
         "l1_gflops": 0.98 * width * threads, "l2_gflops": 0.4 * width * threads,
         "stream_gbs": 20.0}
        for threads in counts for isa, width in (("avx512", PEAK), ("avx2", PEAK / 2))
    ]  # fmt: skip
    growth = []
    places = {"nnz": (100, 1000, 10**4, 10**5), "batch": (1, 4, 16, 64, 256),
              "length": (24, 128, 512, 2709), "in_channels": (1, 8, 47, 512)}  # fmt: skip
    for quantity, xs in places.items():
        for i, computation in enumerate(("fprop", "dgrad", "wgrad")):
            for threads in counts:
                points = [
                    [x, 0.02 * (1 + i) * x**0.97 / threads, int(3e6 * (1 + i) * x**0.4)] for x in xs
                ]
                growth.append({
                    "quantity": quantity, "computation": computation, "threads": threads,
                    "points": points, "exponent": 0.97, "exponent_range": [0.95, 1.0],
                    "memory_exponent": 0.4,
                })  # fmt: skip
    network = [
        {"model": "DSN", "mode": mode, "length": length, "batch": 16, "in_channels": 1,
         "threads": threads, "ms": _ways(mode, length), "ratio": {
             "masked_dense": [5.2, 5.0, 5.4], "dense_best": [3.9, 3.8, 4.0],
             "dense_compiled": [4.8, 4.6, 5.1]}, "settings": {"dense_best": "channels_last"},
         "peak_bytes": {"sparse": 30_000_000 + 10_000 * length, "masked_dense": 90_000_000},
         "parts": {way: _parts(length, way == "sparse") for way in ("masked_dense", "sparse")}}
        for mode in ("train", "inference") for threads in counts for length in (24, 128, 512)
    ]  # fmt: skip
    epoch = {"model": "DSN", "mode": "epoch", "length": 1460, "batch": 10, "in_channels": 1,
             "threads": 1, "ms": {"sparse": 2300.0}, "ratio": {}, "peak_bytes": {}}  # fmt: skip
    machine = {"cpu": "Imaginary CPU <x64>", "cores": "2", "torch": "0.0", "date": "2001-01-01",
               "commit": "0000000"}  # fmt: skip
    goals = [
        {"goal": "fprop, L = 128: at least 8x F.conv1d", "measured": "8.4x", "verdict": "met"},
        {"goal": "bfloat16: stated", "measured": "1.2x", "verdict": "stated"},
        {"goal": "wgrad: at least 70 % of peak", "measured": "63 %", "verdict": "missed by 10%"},
    ]
    return {
        "schema": 1, "machine": machine, "peaks": peaks, "rows": rows, "growth": growth,
        "network": [*network, epoch], "goals": goals,
    }  # fmt: skip


def _ways(mode: str, length: int) -> dict[str, float]:
    whole = 0.47 * length / (3 if mode == "inference" else 1)
    return {"sparse": whole / 5.2, "masked_dense": whole, "dense_best": whole / 1.33,
            "dense_compiled": whole / 1.08}  # fmt: skip


def _parts(length: int, sparse: bool) -> dict[str, float]:
    conv = 0.12 * length / (7 if sparse else 1)
    rest = {"1x1 bottleneck": 8e-3, "BatchNorm + ReLU": 1.4e-2, "head and loss": 3e-3, "Adam": 2e-3,
            "masks": 0.0 if sparse else 4e-3, "Python and autograd": 2e-3}  # fmt: skip
    convolutions = {"fprop": conv, "dgrad": conv, "wgrad": 1.2 * conv}
    return {f"sparse conv {name}": value for name, value in convolutions.items()} | {
        name: value * length for name, value in rest.items()
    }
