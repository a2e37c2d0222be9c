"""Hugging Face: ``save_pretrained`` and ``from_pretrained`` restore values and patterns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparseconv as sc

transformers = pytest.importorskip("transformers")


class Config(transformers.PretrainedConfig):
    model_type = "tiny-sparse"

    def __init__(self, density: float = 0.2, **more: Any) -> None:
        self.density = density
        super().__init__(**more)


class Net(transformers.PreTrainedModel):
    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.conv = sc.SparseConv1d(1, 16, 15, padding="same", density=config.density)
        self.head = nn.Linear(16, 2)
        self.post_init()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean(-1))


@pytest.mark.tool("transformers: save_pretrained, from_pretrained", "works")
def test_from_pretrained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Net(Config()).eval(), torch.randn(4, 1, 50)
    net.save_pretrained(tmp_path)
    again = Net.from_pretrained(tmp_path).eval()
    assert again(x).equal(net(x))
    assert again.conv.pattern == net.conv.pattern
    again.conv.set_pattern(sc.KernelCSR.full((16, 1, 15)))
    assert again.conv.dense_weight().equal(net.conv.dense_weight())
    with pytest.raises(RuntimeError, match="mismatched"):  # nnz is that of the configuration
        Net.from_pretrained(tmp_path, density=0.5)
