"""Convert sparse layers back to dense ones."""

from __future__ import annotations

import torch
from torch import nn

from sparseconv.nn.modules import check_module, check_not_wrapped, deepcopy_model, hooks_of, replace
from sparseconv.nn.sparse_layer import SparseLayer


@torch.inference_mode(False)
def to_dense(model: nn.Module) -> nn.Module:
    """Copy a model with a dense layer of torch in place of every sparse one.

    This reverses ``convert``, for tools that support only torch's layers. Active weights and biases
    keep their exact values; inactive weights become +0.0. If it matters which zeros were active,
    save ``{name: layer.pattern.to_mask()}`` for the ``masks`` argument of ``convert``. Names, mode
    and ``requires_grad`` are preserved. Values and biases that pruning or a parametrization
    computes become plain parameters; added attributes are lost.

    A layer whose left and right padding differ, as in a DSN, becomes an ``nn.Sequential`` with
    torch's padding layer and an ``nn.Conv1d``. Its state dict entries are then ``1.weight`` and
    ``1.bias``.

    Args:
        model: any module; it is left unchanged.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a sparse layer with hooks, which would be lost, or that something unregistered
            references, such as a list or partial; a compiled or wrapped model.
        NotImplementedError: see ``SparseConv1d.to_dense``.

    Example:
        >>> from sparseconv import SparseConv1d
        >>> to_dense(nn.Sequential(SparseConv1d(2, 3, 5, padding=(4, 0)), nn.ReLU()))
        Sequential(
          (0): Sequential(
            (0): ZeroPad1d((4, 0))
            (1): Conv1d(2, 3, kernel_size=(5,), stride=(1,))
          )
          (1): ReLU()
        )
    """
    check_module(model)
    check_not_wrapped(model, "convert")
    twin = deepcopy_model(model)
    successors: dict[nn.Module, nn.Module] = {}
    for name, layer in twin.named_modules():
        if not isinstance(layer, SparseLayer):
            continue
        if hooks_of(layer):
            raise ValueError(f"layer {name!r} has hooks, which would be lost; remove them first")
        try:
            successors[layer] = layer.to_dense()
        except NotImplementedError as error:
            raise NotImplementedError(f"layer {name!r}: {error}") from None
    return replace(twin, successors)
