"""Named cases, for timings and tests."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparseconv import testing
from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR
from sparseconv.models import DSN
from sparseconv.nn.conv import SparseConv1d

SUITES = {
    "layer": "a later layer of a univariate DSN: the shape that the kernels were designed for",
    "published": "the distinct layers of every published DSN configuration",
    "trained": "patterns of a network trained on GunPoint",
    "density": "uniform random patterns of density 2 to 100 %, and DSN's at S = 50, 80 and 90 %",
    "length": "series of 8 to 4096 time steps",
    "batch": "1 to 17 series, and odd lengths",
    "channels": "1 to 512 input and output channels",
    "kernel": "3 to 128 taps",
    "break_even": "densities of 30 to 100 % at other lengths, channel counts and kernel sizes",
    "options": "first layer, 1x1, stride, dilation, groups",
    "dtype": "float64, bfloat16 and float16",
    "blocks": "blocks of 16 x 16 channels that share their taps, in bfloat16; also a training step",
    "adversarial": "patterns and shapes that are hard to split between threads or into blocks",
    "network": "the whole network: training step, update, inference, latency",
    "random_kernels": "features of ROCKET and MiniROCKET kernels, per series, compared with aeon",
}
WITHOUT_CASES = ("network", "random_kernels")
# Masks of the first and of the last layer of a trained network (those between have the last one's
# shape). Made before 1.0 with torch 2.13.0, of the network of least training loss, epoch 441:
#     python -m sparseconv train GunPoint --epochs 500 --threads 1 --out gunpoint
#     layers = sparseconv.load_run("gunpoint").model.sparse_layers()
#     first, *_, last = (layer.pattern.to_mask().numpy() for layer in layers)
#     np.savez_compressed("trained.npz", first=first, last=last)
TRAINED = Path(__file__).with_name("trained.npz")


class Problem(NamedTuple):
    """One convolution with all its tensors."""

    x: Tensor  # (N, C_in, L)
    values: Tensor  # (nnz,)
    grad: Tensor  # (N, C_out, L_out), gradient of the output
    pattern: KernelCSR
    geometry: Geometry


def layer_problem(layer: SparseConv1d, batch: int, length: int) -> Problem:
    """Build a layer's problem with random series, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    geometry = layer._geometry()
    x = torch.randn(batch, layer.in_channels, length, generator=generator)
    grad_shape = batch, layer.out_channels, geometry.output_length(length)
    grad = torch.randn(grad_shape, generator=generator)
    return Problem(x, layer.values.detach(), grad, layer.pattern, geometry)


@dataclass(frozen=True, kw_only=True)
class Case(testing.Case):
    """A test case with a name and a pattern.

    Attributes:
        suite: one of ``SUITES``.
        pattern: a pattern of ``sparseconv.testing``, or one of the following. ``dsn_prefix`` and
            ``dsn_evolved`` are patterns of a DSN; ``density`` is 1 - S, the active share of a
            kernel group's region. In ``dsn_ungrouped``, the region is the whole kernel.
            ``trained_first`` and ``trained_last`` come from a trained network.
            ``one_weight_per_channel`` reads each input channel once; ``one_channel`` reads only
            input channel 0. In ``dense_output``, output channel 0 is fully active, and the others
            are sparse. In ``empty_outputs``, every second output channel is inactive.
    """

    name: str
    suite: str
    bias: bool = False

    def make_pattern(self) -> KernelCSR:
        return _make_pattern(self)

    def build(self) -> Problem:
        x, values, _, grad = self.tensors()
        return Problem(x, values, grad, self.make_pattern(), self.geometry)


@functools.lru_cache(maxsize=4)
def _make_pattern(case: Case) -> KernelCSR:
    if case.pattern.startswith("trained_"):
        with np.load(TRAINED) as masks:
            return KernelCSR.from_mask(torch.from_numpy(masks[case.pattern[len("trained_") :]]))
    if case.pattern.startswith("dsn_"):
        return _dsn_pattern(case)
    shape = (case.out_channels, case.in_channels // case.groups, case.kernel_size)
    mask = torch.zeros(shape, dtype=torch.bool)
    drawn = torch.rand(mask.numel(), generator=torch.Generator().manual_seed(case.seed))
    # Exactly the density's number, so that cases of one density belong to one sweep.
    mask.view(-1)[drawn.argsort()[: round(case.density * mask.numel())]] = True
    if case.pattern == "one_weight_per_channel":
        mask[:] = False
        mask[0, :, 0] = True
    elif case.pattern == "one_channel":
        mask[:, 1:] = False
    elif case.pattern == "dense_output":
        mask[0] = True
    elif case.pattern == "empty_outputs":
        mask[::2] = False
    elif case.pattern != "random":
        return testing.Case.make_pattern(case)
    return KernelCSR.from_mask(mask)


def _dsn_pattern(case: Case) -> KernelCSR:
    """Return the pattern of a new network's layer; ``evolved`` is the limit of random growth."""
    first = case.in_channels == 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        model = DSN(
            1, 2, sparsity=round(1 - case.density, 12), kernel_size=case.kernel_size,
            nf=case.out_channels // 3 if first else case.in_channels, depth=1 if first else 2,
            n_groups=1 if case.pattern == "dsn_ungrouped" else 3,
            init="prefix" if case.pattern == "dsn_prefix" else "random",
        )  # fmt: skip
    return model.sparse_layers()[-1].pattern


Fields = dict[str, Any]
# DSN's later layer on 16 series of 128 samples, S = 80 %, zeros around.
LAYER: Fields = {
    "n": 16, "in_channels": 47, "out_channels": 141, "kernel_size": 39, "length": 128,
    "padding": "same", "pattern": "dsn_evolved", "density": 0.2,
}  # fmt: skip
UNIFORM: Fields = {"pattern": "random", "density": 2 / 15}  # of equal nnz, drawn uniformly
RIGHT: Fields = {"padding": (0, 38), "padding_mode": "replicate"}


def _square(channels: int) -> Fields:
    return {"in_channels": channels, "out_channels": channels, "length": 64}


def _rows() -> Iterator[tuple[str, str, Fields]]:
    """Yield the suite, the name and the differences from ``LAYER`` of each case."""
    for pattern in ("dsn_prefix", "dsn_evolved"):
        for length in (24, 128, 512, 1024, 2709):
            yield "layer", f"{pattern}_L{length}", {"pattern": pattern, "length": length}
    yield from (("published", *row) for row in _published())
    for layer, channels in (("first", 1), ("last", 47)):
        for n, length in ((5, 150), (16, 128)):  # as it was trained, and as the others here
            sizes = {"in_channels": channels, "n": n, "length": length}
            yield "trained", f"trained_{layer}_N{n}_L{length}", {
                "pattern": f"trained_{layer}", **sizes, **RIGHT,
            }  # fmt: skip
    for percent in (2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100):
        yield "density", f"uniform_{percent}", UNIFORM | {"density": percent / 100}
    for percent in (50, 80, 90):
        yield "density", f"dsn_S{percent}", {"density": round(1 - percent / 100, 12)}
    # Its time is that of reading and writing: what a sparse layer costs without its weights.
    yield "density", "packing", UNIFORM | {"pattern": "one_weight_per_channel"}
    for length in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
        yield "length", f"length_{length}", {"length": length}
    for n in (1, 2, 5, 16, 17):
        yield "batch", f"batch_{n}", {"n": n}
    for length in (127, 131, 513):
        yield "batch", f"odd_L{length}", {"length": length}
    for channels in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        yield "channels", f"channels_{channels}", UNIFORM | _square(channels)
    for taps in (3, 5, 9, 19, 39, 64, 128):
        yield "kernel", f"kernel_{taps}", UNIFORM | {"kernel_size": taps}
    # What the sweeps leave open of three maps: density against length, channels and kernel.
    for percent in (30, 60, 100):
        for mark, changes in {
            **{f"L{length}": {"length": length} for length in (24, 512)},
            **{f"C{channels}": _square(channels) for channels in (8, 32, 128)},
            **{f"K{taps}": {"kernel_size": taps} for taps in (3, 9)},
        }.items():
            name = f"uniform_{percent}_{mark}"
            yield "break_even", name, UNIFORM | {"density": percent / 100} | changes
    yield from (("options", *row) for row in _options().items())
    for dtype in ("float64", "bfloat16", "float16"):
        yield "dtype", dtype, {"dtype": dtype}
    for n, length in ((16, 24), (16, 128), (16, 512), (16, 1024), (1, 512)):
        yield "blocks", f"blocks_{n}x{length}", {
            "n": n, "length": length, "in_channels": 48, "out_channels": 144, "dtype": "bfloat16",
            "pattern": "blocks", "density": 2 / 15,
        }  # fmt: skip
    for pattern in ("dense_output", "empty_outputs", "one_channel", "one_dense_row",
                    "last_tap_only"):  # fmt: skip
        yield "adversarial", pattern, UNIFORM | {"pattern": pattern}


def _published() -> Iterator[tuple[str, Fields]]:
    """Yield the settings, sizes and batch sizes of the DSN paper (Xiao et al. 2022, section 5.1).

    Two bundled sets represent each of the UCR and UEA archives.
    """
    for name, n, length, how in (
        ("ucr85_GunPoint", 5, 150, RIGHT),
        ("ucr85_OSULeaf", 16, 427, RIGHT),
        ("ucr2018_GunPoint", 5, 150, {}),
        ("ucr2018_ACSF1", 10, 1460, {}),
    ):
        yield f"{name}_first", {"in_channels": 1, "n": n, "length": length, **how}
        yield f"{name}_later", {"n": n, "length": length, **how}
    for name, length in (("HAR", 128), ("EEG2", 256), ("DailySport", 125)):
        for percent in (50, 80, 90):
            density = round(1 - percent / 100, 12)
            yield f"uci_{name}_S{percent}", {"length": length, "density": density, **RIGHT}
    yield "uci_HAR_ungrouped", {"pattern": "dsn_ungrouped", **RIGHT}
    yield "uci_HAR_dense", {"pattern": "full", "density": 1.0, **RIGHT}
    for name, n, length in (("BasicMotions", 4, 100), ("JapaneseVowels", 16, 25)):
        sizes = {"in_channels": 59, "out_channels": 177, "n": n, "length": length}
        yield f"uea_{name}", {**sizes, "density": 0.1, **RIGHT}


def _options() -> dict[str, Fields]:
    bottleneck = UNIFORM | {"in_channels": 141, "out_channels": 47, "kernel_size": 1}
    return {
        **{f"first_layer_L{n}": {"in_channels": 1, "length": n} for n in (128, 512)},
        "pointwise": bottleneck,
        "pointwise_dense": bottleneck | {"pattern": "full", "density": 1.0},
        "stride_2": {"padding": 19, "stride": 2},
        "dilation_4": {"dilation": 4},
        "groups_3": UNIFORM | {"in_channels": 48, "out_channels": 144, "groups": 3},
        "depthwise": UNIFORM | {"groups": 47},
        "causal": {"padding": (38, 0)},
        "circular": {"padding_mode": "circular"},
    }


def _all() -> Iterator[Case]:
    for suite, name, changes in _rows():
        yield Case(**(LAYER | changes), name=name, suite=suite)
    for name, case in {
        "wgrad_splits": testing.Case(16, 2, 3, 3, 512),  # lane groups summed in separate runs
        # More rows than L2 has sums for:
        "output_row_blocks": testing.Case(16, 2, 230, 3, 480, density=0.2),
        "input_row_blocks": testing.Case(16, 230, 3, 3, 480, density=0.2),
        # No scratch row in common:
        "taps_far_apart": testing.Case(2, 3, 4, 3, 200, dilation=49),
        "far_apart_and_strided": testing.Case(
            2, 3, 4, 5, 900, 2, (90, 7), 101, padding_mode="circular"
        ),
    }.items():
        yield Case(**(vars(case) | {"bias": False}), name=name, suite="adversarial")


CASES = {case.name: case for case in _all()}


def select(suites: Collection[str] = (), names: Collection[str] = ()) -> list[Case]:
    """Return the cases with these suites or names, or all cases if neither is specified."""
    everything = not (suites or names)
    return [c for c in CASES.values() if everything or c.suite in suites or c.name in names]
