"""Under autocast to bfloat16: what has no rule in rows is computed in lanes, in float32."""

from __future__ import annotations

import pytest
import torch
from graph_steps import check_rounded, compiled, sparse
from torch import Tensor, nn

from sparseconv.compiler import compiled_report

pytestmark = pytest.mark.promise("P7")


class Rounding(nn.Module):
    """A convolution of rounded samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = sparse(2, 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.to(torch.bfloat16).to(torch.float32))
        return y


def test_a_network_with_few_channels() -> None:
    body = [sparse(3, 8, 5), nn.BatchNorm1d(8), nn.ReLU(), sparse(8, 6, 5), nn.GLU(1)]
    model = nn.Sequential(*body, nn.Conv1d(3, 4, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    nn.init.constant_(model[1].bias, 1.0)
    x = torch.randn(5, 3, 60)
    with torch.autocast("cpu", torch.bfloat16):
        (report,) = check_rounded(model, x)
        assert compiled(model)(x).dtype == model(x).dtype == torch.bfloat16
    assert (report.lanes["lanes_conv"], report.lanes["to"], report.leaves) == (2, 1, 0)


def test_casts_stay_without_autocast() -> None:
    model, x = Rounding(), torch.randn(2, 2, 40)
    assert compiled(model)(x).equal(model(x))
    assert not model(x).equal(model.conv(x))
    assert compiled_report(model)[0].lanes["lanes_conv"] == 0
