"""All that running or converting a model could change, comparable."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def everything(model: nn.Module) -> list[Any]:
    """What a model holds, by identity; its tensors' contents and gradients; generators, modes."""
    numpy = np.random.get_state()
    held: list[Any] = [
        torch.get_rng_state().tolist(), random.getstate(), numpy[1].tolist(), numpy[2],
        torch.get_num_threads(), torch.is_grad_enabled(),
    ]  # fmt: skip
    for name, module in model.named_modules():
        held.append((name, id(module), type(module), module.training))
        for key, value in vars(module).items():
            if key == "_seen":  # when a sparse layer last read its buffers
                continue
            entries = {key: value}
            if isinstance(value, dict | list):
                entries = value if isinstance(value, dict) else dict(enumerate(value))
            for entry, item in entries.items():
                if not isinstance(item, Tensor):
                    held.append((key, entry, id(item)))
                    continue
                grad = item.grad.tolist() if item.is_leaf and item.grad is not None else None
                # Pruning computes a new attribute in every pass.
                held.append((key, entry, entry == key or id(item), item.tolist(), grad))
    return held
