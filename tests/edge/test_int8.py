"""int8 programs: the bits of their model in NumPy, and near PyTorch."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c_program import COMPILERS, Floats, Program
from edge_networks import NETWORKS, lowered, network, series
from torch import nn

import sparseconv as sc
from sparseconv import SparseConv1d
from sparseconv.edge import lowering, quantize

EXTREMES = [np.nan, np.inf, -np.inf, 1e-45, -1e-39, 3e38, -3e38, 0.0, -0.0, 1e6, -1e6]


def extreme(n_cases: int, channels: int, length: int) -> Floats:
    """Random series of all magnitudes, with values in them that no series should have."""
    rng = np.random.default_rng(n_cases)
    X = rng.normal(size=(n_cases, channels, length)).astype(np.float32)
    X *= 10.0 ** rng.integers(-3, 4, size=(n_cases, 1, 1))
    X[rng.random(X.shape) < 0.05] = rng.choice(EXTREMES)
    places = rng.random(X.shape) < 0.02
    X[places] = rng.choice(np.array(EXTREMES, np.float32), places.sum())
    return X.astype(np.float32)


def integers(model: nn.Module, X: torch.Tensor) -> quantize.IntegerNetwork:
    return quantize.quantize(lowering.lower(model, *X.shape[1:]), X.numpy())


WAYS = [*product(COMPILERS, (("-O0",), ("-O3", "-march=native")))]


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
        compiler, flags = WAYS[(number % 2 + i) % 4]
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


def test_what_is_not_a_number_counts_as_zero(tmp_path: Path) -> None:
    model, X = network("dsn"), series(8)
    program = Program(
        sc.export_c(model, X, tmp_path / "a", weights="int8", calibration=X), flags=("-O2",)
    )
    x, zero = X[:1].numpy().copy(), X[:1].numpy().copy()
    x[0, :, 5:9], zero[0, :, 5:9] = np.nan, 0
    assert program.scores(x).tobytes() == program.scores(zero).tobytes()
    x[0, 1, 5:9], zero[0, 1, 5:9] = np.inf, 1e30
    x[0, 2, 5:9], zero[0, 2, 5:9] = -np.inf, -1e30
    x[0, 0], zero[0, 0] = -1e-45, 0
    assert program.scores(x).tobytes() == program.scores(zero).tobytes()


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


def test_long_distances_are_bridged(tmp_path: Path) -> None:
    """A distance beyond a byte takes weights of 0 in between."""
    mask = torch.zeros(3, 300, 3, dtype=torch.bool)
    mask[0, 255, 0] = mask[0, 256, 2] = mask[1, 299, 2] = mask[2, 0, 0] = mask[2, 254, 2] = True
    conv = SparseConv1d(300, 3, 3, pattern=sc.KernelCSR.from_mask(mask))
    model = nn.Sequential(conv, nn.AdaptiveAvgPool1d(1), nn.Flatten()).eval()
    X = series(5, channels=300, length=9)
    program = Program(sc.export_c(model, X, tmp_path / "a", weights="int8", calibration=X))
    scores = integers(model, X).scores(X.numpy())
    assert program.scores(X.numpy()).tobytes() == scores.tobytes()
