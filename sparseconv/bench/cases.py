"""Named cases: what is timed and what is tested are built here, from one description."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparseconv import testing
from sparseconv.bench import trained
from sparseconv.core.geometry import Geometry
from sparseconv.core.pattern import KernelCSR
from sparseconv.models import DSN
from sparseconv.nn.conv import SparseConv1d

SUITES = {
    "layer": "the later layer of a univariate DSN: the shape that the kernels are made for",
    "published": "the distinct layers of every published DSN configuration",
    "trained": "patterns of a network trained on GunPoint",
    "density": "uniform random patterns of 2 to 100 %, and DSN's at S = 50, 80 and 90 %",
    "length": "series of 8 to 4096 samples",
    "batch": "1 to 17 series, and odd lengths",
    "channels": "1 to 512 channels in and out",
    "kernel": "3 to 128 taps",
    "break_even": "30 to 100 % of the weights at other lengths, channels and kernel sizes",
    "options": "first layer, 1x1, stride, dilation, groups",
    "dtype": "float64, bfloat16 and float16",
    "isa": "AVX2 forced",
    "adversarial": "patterns and shapes that are hard to share out or to cut into blocks",
    "network": "the whole network: training step, update, inference, latency",
    "random_kernels": "features of ROCKET's and MiniROCKET's kernels, per series, beside aeon's",
    "compiled": "a layer compiled, and exported: its time over the eager call's",
}
WITHOUT_CASES = ("network", "random_kernels", "compiled")


class Problem(NamedTuple):
    """One convolution with all its tensors."""

    x: Tensor  # (N, C_in, L)
    values: Tensor  # (nnz,)
    grad: Tensor  # (N, C_out, L_out), gradient of the output
    pattern: KernelCSR
    geometry: Geometry


def layer_problem(layer: SparseConv1d, batch: int, length: int, seed: int = 0) -> Problem:
    """A layer as it is, on random series; the same seed gives the same bits."""
    generator = torch.Generator().manual_seed(seed)
    geometry = Geometry(
        layer.pattern.shape,
        layer.stride[0],
        layer.resolved_padding,
        layer.dilation[0],
        layer.groups,
        layer.padding_mode,
    )
    x = torch.randn(batch, layer.in_channels, length, generator=generator)
    grad_shape = batch, layer.out_channels, geometry.output_length(length)
    grad = torch.randn(grad_shape, generator=generator)
    return Problem(x, layer.values.detach(), grad, layer.pattern, geometry)


@dataclass(frozen=True, kw_only=True)
class Case(testing.Case):
    """A test case with a name, and with patterns as they occur.

    Attributes:
        name: how the case is called everywhere.
        suite: which of ``SUITES`` it belongs to.
        isa: the instruction set that the kernels are forced to; the best one if empty.
        module: time a forward pass of ``SparseConv1d`` beside one of ``nn.Conv1d``, alone and with
            its gradients, and with all that surrounds the kernels, instead of the kernels alone.
        pattern: besides those of ``sparseconv.testing``, where ``dsn_prefix`` and ``dsn_evolved``
            are here those of a real network: ``density`` is 1 - S, the active share of a kernel
            group's region. ``dsn_ungrouped`` has one region, the whole kernel. ``trained_first``
            and ``trained_last`` were saved from a trained network. ``one_weight_per_channel``
            reads every input channel once; ``one_channel`` has all active weights in input channel
            0; ``dense_output`` has output channel 0 fully active among sparse ones;
            ``empty_outputs`` has no active weight in every second output channel.
    """

    name: str
    suite: str
    isa: str = ""
    module: bool = False
    bias: bool = False

    def make_pattern(self) -> KernelCSR:
        """Build the pattern; always the same one."""
        return _make_pattern(self)

    def build(self) -> Problem:
        """Draw the tensors; always the same ones."""
        x, values, _, grad = self.tensors()
        pattern = self.make_pattern()
        return Problem(x, values, grad, pattern, Geometry(pattern.shape, *self.geometry))

    def shrunk(self, n: int = 2, outputs: int = 40) -> Case:
        """The same case on fewer and shorter series, for tests.

        Example:
            >>> small = CASES["dsn_evolved_L1024"].shrunk()
            >>> small.n, small.length, small.output_length
            (2, 40, 40)
        """
        surplus = max(0, (self.output_length - outputs) * self.stride)
        return replace(self, n=min(self.n, n), length=max(1, self.length - surplus))


@functools.lru_cache(maxsize=4)
def _make_pattern(case: Case) -> KernelCSR:
    if case.pattern.startswith("trained_"):
        return trained.pattern(case.pattern.removeprefix("trained_"))
    if case.pattern.startswith("dsn_"):
        return _dsn_pattern(case)
    shape = (case.out_channels, case.in_channels // case.groups, case.kernel_size)
    mask = torch.zeros(shape, dtype=torch.bool)
    drawn = torch.rand(mask.numel(), generator=torch.Generator().manual_seed(case.seed))
    # As many as the density says, so that cases of one density stand in one sweep.
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
    """The pattern of a new network's layer; ``evolved`` is what random growth tends to."""
    first = case.in_channels == 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        model = DSN(
            1,
            2,
            sparsity=round(1 - case.density, 12),
            nf=case.out_channels // 3 if first else case.in_channels,
            kernel_size=case.kernel_size,
            depth=1 if first else 2,
            n_groups=1 if case.pattern == "dsn_ungrouped" else 3,
            init="prefix" if case.pattern == "dsn_prefix" else "random",
        )
    pattern = model.sparse_layers()[-1].pattern
    assert pattern.shape == (case.out_channels, case.in_channels, case.kernel_size)
    return pattern


def _layer(name: str, suite: str, **changes: Any) -> Case:
    """DSN's later layer on 16 series of 128 samples, S = 80 %, zeros around; and what differs."""
    fields: dict[str, Any] = {
        "n": 16, "in_channels": 47, "out_channels": 141, "kernel_size": 39, "length": 128,
        "padding": "same", "pattern": "dsn_evolved", "density": 0.2,
    }  # fmt: skip
    return Case(**(fields | changes), name=name, suite=suite)


def _uniform(name: str, suite: str, **changes: Any) -> Case:
    """The same with as many active weights, drawn uniformly."""
    return _layer(name, suite, **({"pattern": "random", "density": 2 / 15} | changes))


def _all() -> Iterator[Case]:
    for pattern in ("dsn_prefix", "dsn_evolved"):
        for length in (24, 128, 512, 1024, 2709):
            yield _layer(f"{pattern}_L{length}", "layer", pattern=pattern, length=length)
    yield from _published()
    for layer, channels in (("first", 1), ("last", 47)):
        for n, length in ((5, 150), (16, 128)):  # as it was trained, and as the others here
            yield _layer(
                f"trained_{layer}_N{n}_L{length}", "trained",
                pattern=f"trained_{layer}", in_channels=channels, n=n, length=length,
                padding=(0, 38), padding_mode="replicate",
            )  # fmt: skip
    for percent in (2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100):
        yield _uniform(f"uniform_{percent}", "density", density=percent / 100)
    for percent in (50, 80, 90):
        yield _layer(f"dsn_S{percent}", "density", density=round(1 - percent / 100, 12))
    # Its time is that of reading and writing: what a sparse layer costs without its weights.
    yield _uniform("packing", "density", pattern="one_weight_per_channel")
    for length in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
        yield _layer(f"length_{length}", "length", length=length)
    for n in (1, 2, 5, 16, 17):
        yield _layer(f"batch_{n}", "batch", n=n)
    for length in (127, 131, 513):
        yield _layer(f"odd_L{length}", "batch", length=length)
    for channels in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        yield _uniform(
            f"channels_{channels}", "channels",
            in_channels=channels, out_channels=channels, length=64,
        )  # fmt: skip
    for taps in (3, 5, 9, 19, 39, 64, 128):
        yield _uniform(f"kernel_{taps}", "kernel", kernel_size=taps)
    yield from _break_even()
    yield from _options()
    for dtype in ("float64", "bfloat16", "float16"):
        yield _layer(dtype, "dtype", dtype=dtype)
    for length in (128, 512, 1024):
        yield _layer(f"avx2_L{length}", "isa", length=length, isa="avx2")
    yield from _adversarial()


def _published() -> Iterator[Case]:
    """Settings and sizes of the paper; batches by its rule (Xiao et al. 2022, section 5.1).

    UCR's and UEA's archives hold many lengths: two bundled sets stand for each.
    """
    right: dict[str, Any] = {"padding": (0, 38), "padding_mode": "replicate"}
    for archive, data, n, length, how in (
        ("ucr85", "GunPoint", 5, 150, right),
        ("ucr85", "OSULeaf", 16, 427, right),
        ("ucr2018", "GunPoint", 5, 150, {}),
        ("ucr2018", "ACSF1", 10, 1460, {}),
    ):
        name = f"{archive}_{data}"
        yield _layer(f"{name}_first", "published", in_channels=1, n=n, length=length, **how)
        yield _layer(f"{name}_later", "published", n=n, length=length, **how)
    for name, length in (("HAR", 128), ("EEG2", 256), ("DailySport", 125)):
        for percent in (50, 80, 90):
            yield _layer(
                f"uci_{name}_S{percent}", "published",
                length=length, density=round(1 - percent / 100, 12), **right,
            )  # fmt: skip
    yield _layer("uci_HAR_ungrouped", "published", pattern="dsn_ungrouped", **right)
    yield _layer("uci_HAR_dense", "published", pattern="full", density=1.0, **right)
    for name, n, length in (("BasicMotions", 4, 100), ("JapaneseVowels", 16, 25)):
        yield _layer(
            f"uea_{name}", "published",
            in_channels=59, out_channels=177, n=n, length=length, density=0.1, **right,
        )  # fmt: skip


def _break_even() -> Iterator[Case]:
    """What the sweeps leave open of three maps: density against length, channels and kernel."""
    for percent in (30, 60, 100):
        for mark, size, changes in (
            *(("L", n, {"length": n}) for n in (24, 512)),
            *(("C", n, {"in_channels": n, "out_channels": n, "length": 64}) for n in (8, 32, 128)),
            *(("K", n, {"kernel_size": n}) for n in (3, 9)),
        ):
            yield _uniform(
                f"uniform_{percent}_{mark}{size}", "break_even", density=percent / 100, **changes
            )


def _options() -> Iterator[Case]:
    for length in (128, 512):
        yield _layer(f"first_layer_L{length}", "options", in_channels=1, length=length)
    bottleneck: dict[str, Any] = {"in_channels": 141, "out_channels": 47, "kernel_size": 1}
    yield _uniform("pointwise", "options", **bottleneck)
    yield _uniform("pointwise_dense", "options", **bottleneck, pattern="full", density=1.0)
    yield _layer("stride_2", "options", padding=19, stride=2)
    yield _layer("dilation_4", "options", dilation=4)
    yield _uniform("groups_3", "options", in_channels=48, out_channels=144, groups=3)
    yield _uniform("depthwise", "options", in_channels=47, out_channels=141, groups=47)
    yield _layer("causal", "options", padding=(38, 0))
    yield _layer("circular", "options", padding_mode="circular")
    yield Case(1, 4, 8, 5, 16, name="tiny_module", suite="options", module=True)


def _adversarial() -> Iterator[Case]:
    for pattern in ("dense_output", "empty_outputs", "one_channel"):
        yield _uniform(pattern, "adversarial", pattern=pattern)
    for pattern in ("one_dense_row", "last_tap_only"):
        yield _uniform(pattern, "adversarial", pattern=pattern)
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


def select(suites: list[str] | None = None, names: list[str] | None = None) -> list[Case]:
    """The cases of some suites and those of these names; all if neither is given.

    Raises:
        ValueError: a name that is not one; the message lists those that are.

    Example:
        >>> [case.name for case in select(["isa"], ["float64"])]
        ['float64', 'avx2_L128', 'avx2_L512', 'avx2_L1024']
    """
    check_names("suite", suites or (), SUITES)
    check_names("case", names or (), CASES)
    if suites is None and names is None:
        return list(CASES.values())
    return [c for c in CASES.values() if c.suite in (suites or ()) or c.name in (names or ())]


def check_names(kind: str, given: Iterable[str], valid: Iterable[str]) -> None:
    """Refuse a name that is not one, and list those that are."""
    for name in given:
        if name not in valid:
            raise ValueError(f"there is no {kind} {name!r}; expected one of {', '.join(valid)}")
