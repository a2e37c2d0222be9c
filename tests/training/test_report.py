"""The summary, the figures and the HTML page that a run leaves behind."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparseconv import KernelCSR
from sparseconv.cli.results import write_summary
from sparseconv.models import DSN
from sparseconv.report import figures

PNG = b"\x89PNG\r\n\x1a\n"


def history(epochs: int, **both: float) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 1 - 0.5 / epoch}
        row |= {"lr": 3e-4, "prune_fraction": 0.5, "updated": epoch % 5 == 0, "seconds": 0.25}
        rows.append(row | both)
    return rows


@pytest.fixture(scope="module")
def model() -> DSN:
    torch.manual_seed(0)
    return DSN(1, 2, nf=6, kernel_size=9, init="random")


def test_receptive_field_is_the_span_of_the_active_taps() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(40, 5, 13, generator=generator) < 0.15
    sizes = figures.receptive_field_sizes(KernelCSR.from_mask(mask))
    assert sizes.shape == (40, 5)
    spans = set()
    for o in range(40):
        for c in range(5):
            taps = mask[o, c].nonzero().flatten().tolist()
            expected = taps[-1] - taps[0] + 1 if taps else 0
            assert sizes[o, c] == expected
            spans.add(expected)
    assert {0, 1} < spans
    assert len(spans) > 10
    assert (figures.receptive_field_sizes(KernelCSR.full((3, 2, 7))) == 7).all()


def test_group_profiles_sum_magnitudes_by_group_and_tap(
    model: DSN, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "save", lambda figure, _: figure)
    for layer in model.sparse_layers():
        profile = figures.group_profiles(layer)
        weight = layer.dense_weight().detach().abs().double()
        expected = np.zeros_like(profile)
        for row, region in enumerate(layer.regions):
            expected[row] = weight[slice(*region.out_channels)].sum((0, 1)).numpy()
        np.testing.assert_allclose(profile, expected, rtol=1e-12)
        assert profile[0, layer.regions[0].taps[1] :].sum() == 0 < profile[0].sum()
        twin = copy.deepcopy(layer)
        twin.regions = layer.regions[::-1]
        np.testing.assert_array_equal(figures.group_profiles(twin), profile)
        drawn: Any = figures.group_weights([profile] * 2, layer.regions, "")
        assert [axes.get_xlabel() for axes in drawn.axes[:2]] == ["", "tap"]
        shares = [f"{share:.0%}" for share in profile.sum(1) / profile.sum()]
        assert [text.get_text() for text in drawn.axes[0].texts][:-1] == shares


def test_fields_of_stacked_layers_are_those_of_all_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "save", lambda figure, _: figure)
    of_layers = [np.array([9, 2, 2]), np.array([0, 3, 0, 1])]  # the first number: empty kernels
    drawn: Any = figures.receptive_fields({"both": of_layers}, "")
    (line,) = drawn.axes[3].lines
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert line.get_ydata().tolist() == [37.5, 75, 87.5, 100]


def test_training_report(tmp_path: Path, model: DSN) -> None:
    ungrouped = DSN(1, 2, nf=6, kernel_size=9, n_groups=1)
    dense = DSN(3, 2, sparsity=0.0, nf=2, kernel_size=5, depth=1)
    rows, one, watched = history(20), history(1), history(40, test_loss=0.5, test_accuracy=0.7)
    data: Any = SimpleNamespace(name="GunPoint", n_timepoints=150)
    rows[3]["train_loss"] = rows[-1]["train_loss"]  # of equal epochs the later one is kept
    one[0]["train_loss"] = 0.0  # not on a logarithmic axis
    for network, content in ((dense, one), (ungrouped, watched), (model, rows)):
        cost = network.cost(150)
        folder = tmp_path / f"{len(content)} epochs"
        summary = write_summary(folder, data, network, content, 0.98)
        text = summary.read_text()
        assert f"{cost.macs_executed:,}".replace(",", " ") in text
        for i, layer in enumerate(network.sparse_layers(), start=1):
            assert re.search(rf"\| {i}: .*\| +{layer.pattern.nnz} \|", text)
        links = re.findall(r"!\[.+\]\((.+)\)", text)
        assert len(links) == 3
        for link in links:
            assert (summary.parent / link).read_bytes().startswith(PNG)
    assert "0.050000 in epoch 20" in text
