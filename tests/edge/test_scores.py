"""Programs compute what their network does: float32 within a bound, int8 to the last bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c_program import COMPILERS, Program
from edge_networks import NETWORKS, expected, extreme, lowered, network, series
from torch import Tensor, nn

import sparseconv as sc
from benchmarks.edge import targets
from sparseconv import SparseConv1d, SparseConvTranspose1d
from sparseconv.edge import lowering, quantize
from sparseconv.edge.layers import Pointwise

WAYS = (("-O2",), ("-O3", "-march=native", "-ffp-contract=fast"))


@pytest.mark.parametrize(("number", "name"), [*enumerate(NETWORKS)])
def test_scores_and_layers_are_within_the_bound(
    number: int, name: str, exported: Any, count_cases: Any, campaign: Any
) -> None:
    model, X, folder = network(name), series(24), exported(name, "float32")
    exact, bound = expected(model, X, lowered(name))
    with torch.no_grad():
        assert (np.abs(model(X).numpy() - exact) <= bound).all()
    # The bound of a whole network is a worst case, but, unless it is deep, far from allowing
    # anything; that of one layer, on the input that it has in the program, is tight.
    assert name == "inception_time" or bound.max() < 0.3 * np.abs(exact).max()
    for i in range(campaign(1, 2)):
        flags = WAYS[(number + i) % 2]
        off = np.abs(Program(folder, "net", flags=flags).scores(X.numpy()) - exact)
        assert (off <= bound).all(), (name, flags, (off / bound).max())
        count_cases(off.size)
    assert 0 < targets.used_of_bound(folder, lowered(name), X.numpy()) <= 1
    count_cases(len(X) * sum(layer.places.size for layer in lowered(name).layers))


def test_bounds_grow_with_the_steepest_slope() -> None:
    for step in lowered("everything").steps:
        if isinstance(step, Pointwise) and len(step.inputs) == 1:
            x = np.linspace(-4, 4, 999 * step.length * step.channels).reshape(999, -1)
            slope = np.abs(np.diff(step.function(x).ravel()) / np.diff(x.ravel())).max()
            grown = step.error([x], [np.ones_like(x)]) - step.error([x], [0 * x])
            assert slope <= grown.max() <= 1.05 * slope, step.kind


def test_not_a_number_travels_along_active_weights(tmp_path: Path) -> None:
    mask = torch.zeros(4, 2, 3, dtype=torch.bool)
    mask[0, 0, 1] = mask[1, 1, 2] = mask[2] = True  # the last row is empty
    conv = SparseConv1d(2, 4, 3, pattern=sc.KernelCSR.from_mask(mask), padding=1)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten()).eval()
    X = series(1, channels=2, length=6)
    program = Program(sc.export_c(model, X, tmp_path / "a"))
    count = 0
    for channel in range(2):
        for t in range(6):
            for value in (np.nan, np.inf, -np.inf):
                x = X.clone()
                x[0, channel, t] = value
                with torch.no_grad():
                    wanted = model(x).numpy()
                np.testing.assert_array_equal(
                    np.isfinite(program.scores(x.numpy())), np.isfinite(wanted)
                )
                lost = not np.isfinite(wanted).all()
                assert (program.labels(x.numpy()) == [-1]) == lost
                count += lost
    assert count


def test_every_transposed_geometry() -> None:
    """The layers, in NumPy, compute what PyTorch does, also where taps meet only padding."""
    torch.manual_seed(0)
    cases = 0
    for taps, stride, dilation, padding, groups in product((1, 3, 4), (1, 2, 3), (1, 2, 3), (0, 3),
                                                          (1, 2)):  # fmt: skip
        extra, length = max(stride, dilation) - 1, 1 + taps % 3
        if (length - 1) * stride - 2 * padding + dilation * (taps - 1) + extra < 0:
            continue
        args = 4, 2, taps, stride, padding, extra, groups, True, dilation
        dense = nn.ConvTranspose1d(*args)
        layer = SparseConvTranspose1d.from_dense(dense, dense.weight > 0) if cases % 2 else dense
        expected(nn.Sequential(layer, nn.Flatten()).eval(), series(3, channels=4, length=length))
        cases += 1
    assert cases > 60


def test_phases_are_written_where_they_are_read() -> None:
    """Neither BatchNorm nor a concatenation copies a transposed convolution."""
    kinds = [step.kind.partition(",")[0] for step in lowered("unet").steps]
    assert kinds.count("copy") == 2, "the skips, which other layers read as well"
    assert kinds.count("transposed sparse convolution") == 2 * 2
    assert "BatchNorm" not in kinds


class Beginnings(nn.Module):
    """A convolution of the first samples of a series, for each number of samples."""

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        self.lengths = lengths
        self.layers = nn.ModuleList(SparseConv1d(2, 3, 5, density=0.5) for _ in lengths)

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x[..., :n]) for n, layer in zip(self.lengths, self.layers, strict=True)]
        return torch.cat([part.relu().flatten(1) for part in parts], 1)


def test_every_length(tmp_path: Path) -> None:
    """Tiles of positions, and the last one that overlaps."""
    torch.manual_seed(0)
    model = Beginnings([*range(5, 14), 15, 17, 19, 21, 26, 64]).eval()
    X = series(3, channels=2, length=64)
    exact, bound = expected(model, X)
    scores = Program(sc.export_c(model, X, tmp_path / "a")).scores(X.numpy())
    assert (np.abs(scores - exact) <= bound).all()


def integers(model: nn.Module, X: torch.Tensor) -> quantize.IntegerNetwork:
    return quantize.quantize(lowering.lower(model, *X.shape[1:]), X.numpy())


INT8_WAYS = [*product(COMPILERS, (("-O0",), ("-O3", "-march=native")))]


@pytest.mark.parametrize(("number", "name"), [*enumerate(NETWORKS)])
def test_every_bit_of_the_program_and_near_pytorch(
    number: int, name: str, exported: Any, count_cases: Any, campaign: Any
) -> None:
    model, calibration = network(name), series(24)
    made = quantize.quantize(lowered(name), calibration.numpy())
    with torch.no_grad():
        wanted = model(calibration).numpy()
    # int8 has 256 steps, a few layers add up what they lose.
    off = np.abs(made.scores(calibration.numpy()) - wanted).max()
    assert off < 0.15 * (wanted.max() - wanted.min())
    X = np.concatenate([series(50, 1).numpy(), extreme(200, *calibration.shape[1:])])
    scores, labels = made.scores(X), made.labels(made.run(X)).tolist()
    for i in range(campaign(1, 4)):
        compiler, flags = INT8_WAYS[(number % 2 + i) % 4]
        program = Program(exported(name, "int8"), "net", compiler, flags)
        assert program.scores(X).tobytes() == scores.tobytes(), (compiler, flags)
        assert program.labels(X) == labels
        count_cases(len(X))


def test_exponential_and_logarithm() -> None:
    for behind in [*range(200), *range(0, 2**21, 997), 2**31]:
        nats = behind / 2**16
        # log2(e) is off by 2**-25, the exponent is cut to 2**-16; each of 16 factors is rounded,
        # each product cut, and what is left as well.
        off = math.expm1(math.log(2) * (2**-16 + nats * 2**-25)) * math.exp(-nats)
        assert abs(quantize.power_of_e(behind) / 2**30 - math.exp(-nats)) <= off + 33 * 2**-30
    for total in [2**30, 2**30 + 1, 2**31 - 1, 2**31, 3 * 2**30, 60 * 2**30, 2**37 + 12345]:
        # 16 bits, of which the squarings cut a little of each, in log2; then cut again.
        assert abs(quantize.natural_log(total) / 2**16 - math.log(total / 2**30)) < 2**-15


@pytest.mark.parametrize("ending", [[], [nn.LogSoftmax(1)], [nn.Softmax(1)]])
def test_scores_that_saturate(ending: list[nn.Module], tmp_path: Path) -> None:
    """The difference of the largest and the smallest still is an int32: UBSan would tell."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), *ending).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1e6] * 4, [-1e6] * 4, [0.0] * 4]))
    X = series(9, channels=1, length=4)
    folder = sc.export_c(model, X, tmp_path / "a", weights="int8", calibration=X)
    made = integers(model, X)
    program = Program(
        folder, flags=("-O1", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
    )
    assert program.scores(X.numpy()).tobytes() == made.scores(X.numpy()).tobytes()
    if ending:
        assert np.abs(made.run(X.numpy())).max() == quantize.LIMIT


@pytest.mark.parametrize("scale", [1e-30, 1e-11, 1.0, 1e20])
def test_every_scale_is_as_good(scale: float, tmp_path: Path) -> None:
    """Scaling by a power of two changes no integer."""
    torch.manual_seed(0)
    power = 2.0 ** round(math.log2(scale))
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)).eval()
    X = series(20, channels=2, length=10)
    usual = integers(model, X)
    with torch.no_grad():
        model[0].weight.div_(power)
    found = integers(model, X * power)
    assert (found.run((X * power).numpy()) == usual.run(X.numpy())).all()
    with torch.no_grad():
        model[0].bias.mul_(power)
        model[0].weight.mul_(power).mul_(power)
        model[3].weight.div_(power)
    sc.export_c(model, X, tmp_path / "a", weights="int8", calibration=X)
    made = integers(model, X)
    assert (made.run(X.numpy()) == usual.run(X.numpy())).all()
    assert Program(tmp_path / "a").scores(X.numpy()).tobytes() == made.scores(X.numpy()).tobytes()


def test_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, X = network("stride"), series(1001)
    part = X[::2]
    first, second = (
        sc.export_c(model, X[:1], tmp_path / name, weights="int8", calibration=known)
        for name, known in (("a", X), ("b", part[:500]))
    )
    assert "of the 500 calibration series" in (first / "README.md").read_text()
    assert (first / "dsn.c").read_text() != (second / "dsn.c").read_text()
    mixed = nn.Sequential(nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(20, 2)).eval()
    with torch.no_grad():
        mixed[0].running_var.copy_(torch.tensor([1.0, 1e12]))
        mixed[2].weight[:, 10:] = 0
    X = series(60, channels=2, length=10) * torch.tensor([1.0, 1e6])[:, None]
    with pytest.warns(UserWarning, match="scale all channels to a similar range") as warned:
        sc.export_c(mixed, X, tmp_path / "c", weights="int8", calibration=X)
    assert warned[0].filename == __file__
