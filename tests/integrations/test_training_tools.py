"""Training tools of torch over changes of the pattern."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from dst_runs import batches, scheduled, sparse_layers, train_step, two_layers
from tiny import same
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparseconv import DSTScheduler, SparseConv1d


@pytest.mark.tool("Muon", "refuses")
@pytest.mark.tool("SparseAdam", "refuses")
@pytest.mark.tool("LBFGS with DSTScheduler", "refuses", "its history is of all parameters at once")
def test_optimizers_whose_state_cannot_follow_a_pattern() -> None:
    model, settings = two_layers(), {"update_every": 1, "end_step": 9}
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(NotImplementedError, match="LBFGS"):
        DSTScheduler(model, optimizer, **settings)
    assert not DSTScheduler(model, optimizer, **settings, grow="static").step()
    if hasattr(torch.optim, "Muon"):
        with pytest.raises(ValueError, match="2D"):
            torch.optim.Muon(model.parameters())
    with pytest.raises(RuntimeError, match="dense gradients"):
        train_step(model, torch.optim.SparseAdam(model.parameters()), next(batches()))


@pytest.mark.tool("torch.autocast and GradScaler", "works", "float32 weights, half computation")
@pytest.mark.tool("clip_grad_norm_, clip_grad_value_", "works")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_the_scaler_skips(dtype: torch.dtype) -> None:
    """A gradient that is not finite moves nothing, and is forgotten."""
    layer, optimizer, dst = scheduled(SparseConv1d(2, 3, 5, bias=False), grow="gradient")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = copy.deepcopy(layer.state_dict())
    for value, moves in ((1e20, False), (1e-2, True)):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = layer(torch.full((1, 2, 9), value))
            assert y.dtype == dtype
        scaler.scale(y.float().sum()).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(layer.parameters(), 0.1)
        nn.utils.clip_grad_value_(layer.parameters(), 0.05)
        scaler.step(optimizer)
        scaler.update()
        assert dst.step() == moves
        assert same(layer.state_dict(), before) != moves


@pytest.mark.tool("parameter groups, frozen layers", "works")
def test_groups_and_frozen_layers() -> None:
    """A frozen layer keeps its pattern, and need not be in the optimizer."""
    model = two_layers()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model[0].state_dict())
    groups = [
        {"params": [x.values for x in sparse_layers(model)], "weight_decay": 0.1},
        {"params": [x.bias for x in sparse_layers(model)], "lr": 1e-3},
    ]
    for parameters in (groups, list(model[2].parameters())):
        optimizer = torch.optim.AdamW(parameters, 1e-2)
        dst = DSTScheduler(model, optimizer, update_every=1, end_step=9, grow="gradient")
        for x, _ in zip(batches(), range(3), strict=False):
            train_step(model, optimizer, x)
            assert dst.step()
        assert same(model[0].state_dict(), before)
        assert model[0].values.grad is None
    model[0].requires_grad_(True)
    with pytest.raises(ValueError, match="layer"):
        dst.step()


@pytest.mark.tool("PyTorch Lightning: WeightAveraging callbacks", "refuses")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_averages_of_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Module(lightning.LightningModule):
        def __init__(self, grow: str) -> None:
            super().__init__()
            self.network, self.grow = two_layers(), grow

        def training_step(self, x: Tensor, _: int) -> Tensor:
            return self.network(x).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            _, optimizer, self.dst = scheduled(self.network, update_every=4, grow=self.grow)
            return optimizer

        def on_train_batch_end(self, *_: Any) -> None:
            self.dst.step()

    def train(grow: str) -> None:
        module = Module(grow)
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", devices=1, default_root_dir=tmp_path, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            callbacks=[EMAWeightAveraging(decay=0.5)],
        )  # fmt: skip
        trainer.fit(module, DataLoader([*islice(batches(), 6)], batch_size=None))
        assert module.network(torch.zeros(1, 2, 20)).isfinite().all()

    train("static")
    with pytest.raises(RuntimeError, match="averages="):
        train("random")
