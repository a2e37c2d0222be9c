"""``torch.compile(model, backend="sparseconv")`` in bfloat16: blocks of channels stay in rows."""

from __future__ import annotations

import copy

import pytest
import torch
from graph_steps import check_rounded, compiled, sparse
from torch import nn

from sparseconv.ops.backends import extension

pytestmark = [
    pytest.mark.promise("P7"),
    pytest.mark.skipif(
        extension is None or not extension.has_block_kernels(),
        reason="needs a CPU with AVX-512 BF16 or AMX",
    ),
]


@pytest.mark.parametrize("casts", [False, True])
def test_networks_of_blocks(casts: bool) -> None:
    """Under autocast and of bfloat16; all their layers but the first are in rows."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 40), (40, 32)):
        block = 16 if inputs > 1 else 1
        layers += [sparse(inputs, outputs, 7, block=block), nn.BatchNorm1d(outputs), nn.ReLU()]
    layers += [nn.MaxPool1d(3, 1, 1), nn.Conv1d(32, 16, 1), nn.Dropout(0.0)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())
    if not casts:
        model.to(torch.bfloat16)
    wanted = {"lanes_conv": 3, "lanes_norm": 3, "lanes_max_pool": 1, "lanes_pointwise": 1,
              "lanes_mean": 1, "lanes_dropout": 1}  # fmt: skip
    for batch, length in ((6, 30), (3, 71)):
        x = torch.randn(batch, 1, length, dtype=torch.float32 if casts else torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=casts):
            report = check_rounded(model, x)
        assert {name: report[-1].lanes[name] for name in wanted} == wanted
        assert (report[-1].enters, report[-1].leaves) == (1, 0)
        wide = copy.deepcopy(model).double().eval()
        run = compiled(model.eval())
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=casts):
            exact, plain, found = wide(x.double()), model(x).double(), run(x).double()
        # BatchNorm becomes part of the convolutions, whose weights are then rounded.
        bound = 2 * (plain - exact).norm() + torch.finfo(torch.bfloat16).eps * exact.norm()
        assert (found - exact).norm() <= bound
        model.train()
