"""float32 programs: PyTorch's scores within a computed bound, and what reaches them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c_program import Program
from edge_networks import NETWORKS, expected, lowered, network, series
from torch import Tensor, nn

import sparseconv as sc
from benchmarks.edge import targets
from sparseconv import SparseConv1d, SparseConvTranspose1d

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
