"""Fold BatchNorm into convolutions, and fuse ReLU."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from sparseconv.inference.spans import FOLDED, FoldedLink
from sparseconv.nn.block import Block, Plan, leaves
from sparseconv.nn.links import LINKS, Table
from sparseconv.nn.modules import check_module, deepcopy_model


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """Copy a trained model into one that is faster in inference.

    Every ``nn.Sequential`` in the copy changes as follows:

    - A ``BatchNorm1d`` after a ``SparseConv1d`` or an ``nn.Conv1d`` is folded into the convolution.
    - A ``ReLU`` after a ``SparseConv1d`` is applied when the kernel stores its outputs.
    - Adjacent layers of these kinds and 1x1 ``nn.Conv1d`` form one chain, as in a ``Block``.
    - A global average after a 1x1 ``nn.Conv1d`` and an ``AdaptiveAvgPool1d`` before the convolution
      become one average.

    Outputs differ from the outputs of ``model.eval()`` only by rounding. All modules keep their
    positions, names, hooks and state, so the copy can be sliced, trained, loaded and converted. In
    training mode, a Sequential runs as a ``Block``. Modules run one by one in the following
    cases, where merging could be observed or could change the result:

    - modules that require gradients, are in training mode, have hooks or run custom code;
    - inputs that require gradients or have no batch dimension;
    - torch.compile, torch.jit, torch.export, torch.func, autocast, and modes that intercept
      functions or operations (except ``torch.set_default_device``);
    - subclasses of ``nn.Sequential`` that are not inside a plain ``nn.Sequential``;
    - a BatchNorm without running statistics, or whose size or dtype differs from the convolution's;
    - folded weights that would not be finite.

    The first call computes the folded weights, and so does any call after a parameter, buffer,
    pattern or ``eps`` has changed. In-place writes that PyTorch does not count go unnoticed unless
    the parameter requires a gradient: writes through ``.data`` (``p.data.copy_(q)``), ``.numpy()``,
    another process, or ``F.batch_norm(..., training=True)`` on the statistics. After such a write,
    call ``eval()`` on the copy.

    Args:
        model: any module; it is left unchanged.

    Returns:
        A copy in eval mode whose parameters require no gradient. Printing the copy shows which
        modules are computed together; if there are none, the function warns. To train the copy,
        call ``requires_grad_(True)`` and ``train()``; ``requires_grad_(False)`` and ``eval()`` make
        it fast again.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
        ValueError: a lazy module has not run yet.

    Example:
        >>> model = nn.Sequential(nn.Conv1d(2, 3, 5), nn.BatchNorm1d(3), nn.ReLU())
        >>> fast, x = optimize_for_inference(model), torch.randn(4, 2, 9)
        >>> fast.extra_repr()
        'together: 0+1'
        >>> torch.allclose(fast(x), model.eval()(x), atol=1e-5)
        True

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2 (folding).
    """
    check_module(model)
    # Inference tensors cannot be used in training, and do not count writes.
    with torch.inference_mode(False), torch.no_grad():
        fast = deepcopy_model(model).eval()
    for parameter in fast.parameters():  # fast.requires_grad_() refuses ScriptModules
        parameter.requires_grad_(False)
    for module in fast.modules():
        if type(module) not in (nn.Sequential, Block) or "forward" in vars(module):
            continue
        if any(isinstance(link, FoldedLink) for link in Plan(leaves(module), FOLDED).links):
            module.__class__ = InferenceBlock
    if not any(isinstance(module, InferenceBlock) for module in fast.modules()):
        warnings.warn(
            "expected an nn.Sequential in which a BatchNorm1d, a ReLU or a global average follows "
            f"a convolution, but {type(model).__name__} has none; nothing was folded, so the copy "
            "is as fast as the model",
            stacklevel=2,
        )
    return fast


class InferenceBlock(Block):
    """Run an ``nn.Sequential`` or ``Block`` that ``optimize_for_inference`` changed."""

    @property
    def _table(self) -> Table:
        # A slice of it begins in training mode, so nothing is folded for a single call.
        return LINKS if self.training else FOLDED

    def extra_repr(self) -> str:
        """Name the modules that are computed together."""
        names = {module: name for name, module in self.named_modules()}
        links = Plan(leaves(self), FOLDED).links
        found = ["+".join(names[m] for m in x.modules) for x in links if isinstance(x, FoldedLink)]
        return f"together: {', '.join(found)}"

    def train(self, mode: bool = True) -> InferenceBlock:
        """Set the mode; discard the folded weights, because PyTorch does not count all writes."""
        self._planned = None
        return super().train(mode)
