"""PyTorch Lightning: Trainer.fit moves patterns, and checkpoints keep them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from dst_runs import batches, sparse_layers, two_layers
from torch import Tensor
from torch.utils.data import DataLoader

from sparseconv import DSTScheduler

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Module(lightning.LightningModule):
    def __init__(self, grow: str = "gradient", seed: int = 0) -> None:
        super().__init__()
        self.network, self.grow = two_layers(seed=seed), grow
        self.losses: list[float] = []

    def training_step(self, x: Tensor, _: int) -> Tensor:
        loss = self.network(x).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        self.dst = DSTScheduler(
            self.network, optimizer, update_every=4, end_step=99, grow=self.grow
        )
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]

    def on_train_batch_end(self, *_: Any) -> None:
        self.dst.step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dst"] = self.dst.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.restored = checkpoint["dst"]

    def on_train_start(self) -> None:
        if hasattr(self, "restored"):
            self.dst.load_state_dict(self.restored)


def data() -> DataLoader[Tensor]:
    return DataLoader(list(itertools.islice(batches(), 6)), batch_size=None)


def trainer(folder: Path, epochs: int, **options: Any) -> Any:
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, default_root_dir=folder, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        **options,
    )  # fmt: skip


@pytest.mark.tool("PyTorch Lightning: Trainer.fit", "works", "DSTScheduler in on_train_batch_end")
def test_fit_and_resume(tmp_path: Path) -> None:
    through, first, second = Module(), Module(), Module(seed=9)
    trainer(tmp_path, 4, gradient_clip_val=0.5).fit(through, data())
    assert through.losses[-1] < through.losses[0] / 2
    assert through.dst.updates == 6
    path, begun = tmp_path / "half.ckpt", trainer(tmp_path, 2, gradient_clip_val=0.5)
    begun.fit(first, data())
    begun.save_checkpoint(path)
    trainer(tmp_path, 4, gradient_clip_val=0.5).fit(second, data(), ckpt_path=path)
    for one, other in zip(sparse_layers(second), sparse_layers(through), strict=True):
        assert one.pattern == other.pattern
        assert one.values.equal(other.values)
    assert second.losses == through.losses[12:]


@pytest.mark.tool("PyTorch Lightning: WeightAveraging callbacks", "refuses")
def test_weight_averaging(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import EMAWeightAveraging

    def train(grow: str) -> None:
        module = Module(grow)
        trainer(tmp_path, 2, callbacks=[EMAWeightAveraging(decay=0.5)]).fit(module, data())
        assert module.network(torch.zeros(1, 2, 20)).isfinite().all()

    train("static")
    with pytest.raises(RuntimeError, match="averages="):
        train("random")
