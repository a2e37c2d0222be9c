"""Models to convert, pruned one way or another, and how to compare them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import prune

from sparseconv.core.modules import deepcopy_model

KINDS = ("prune", "twice", "ao", "zeros", "masks")


def integers(model: nn.Module) -> nn.Module:
    """Small integers for all parameters, so that every sum is exact."""
    with torch.no_grad():
        for parameter in model.parameters():
            signs = torch.randint(0, 2, parameter.shape) * 2 - 1
            parameter.copy_(torch.randint(1, 4, parameter.shape) * signs)
    return model


def pruned(model: nn.Module, kind: str) -> dict[str, Tensor]:
    """Prune every Conv1d to about a fifth, one way or another; returns the masks to be given."""
    masks = {}
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv1d)}
    if kind == "ao":
        sparsifier = WeightNormSparsifier(sparsity_level=0.8, sparse_block_shape=(1, 1))
        sparsifier.prepare(model, [{"tensor_fqn": f"{name}.weight"} for name in convs])
        for conv in convs.values():  # its own step() knows 2-D weights only
            mask = conv.parametrizations.weight[0].mask
            mask.copy_(torch.rand_like(mask) < 0.2)
    for name, conv in convs.items():
        if kind in ("prune", "twice"):
            prune.random_unstructured(conv, "weight", 0.5 if kind == "twice" else 0.8)
        if kind == "twice":
            prune.ln_structured(conv, "weight", 0.5, n=2, dim=2)
        if kind == "zeros":
            with torch.no_grad():
                conv.weight.mul_(torch.rand_like(conv.weight) < 0.2)
        if kind == "masks":
            masks[name] = torch.rand_like(conv.weight) < 0.2
    return masks


def masked(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """What the masks mean."""
    model = deepcopy_model(model)
    for name, mask in masks.items():
        model.get_submodule(name).weight.data.mul_(mask)
    return model


class Nested(nn.Module):
    """A layer under two names, dictionaries, lists, a branch, a bias under pruning."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 4, 7, padding=3, padding_mode="reflect")
        twice = nn.Conv1d(4, 4, 3, padding="same", dilation=2, groups=2)
        self.block = nn.Sequential(twice, nn.ReLU(), twice)
        self.also = twice
        self.branches = nn.ModuleDict(
            {
                "a": nn.ModuleList([nn.Conv1d(4, 3, 5, padding=2, padding_mode="circular")]),
                "b": nn.Sequential(nn.Sequential(nn.Conv1d(4, 3, 1, bias=False))),
            }
        )
        self.head = nn.Conv1d(6, 2, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x).relu())
        x = torch.cat([self.branches["a"][0](x), self.branches["b"](x)], dim=1)
        return self.head(x)


def nested(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return integers(Nested())


X = torch.randint(-3, 4, (2, 2, 30), generator=torch.Generator().manual_seed(1)).float()


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(torch.int64 if tensor.dtype == torch.float64 else torch.int32)
