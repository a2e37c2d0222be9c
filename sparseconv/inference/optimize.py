"""``optimize_for_inference``: BatchNorm folded into the convolution before it, ReLU fused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, zip_longest
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from sparseconv.functional.fused import runs_eagerly
from sparseconv.inference.folding import Merged, MergedSparseConv, split
from sparseconv.nn.block import Block
from sparseconv.nn.hooks import has_code_of_its_own, has_hooks_for_all
from sparseconv.nn.restored import deepcopy_model


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """Copy a trained model into one that is faster in inference.

    In every ``nn.Sequential`` the ``BatchNorm1d`` that follows a ``SparseConv1d`` or an
    ``nn.Conv1d`` is folded into its weights and bias, and the ``ReLU`` that follows a
    ``SparseConv1d`` is computed where the kernel stores its outputs; a 1x1 ``nn.Conv1d`` behind
    them, in the same Sequential or the next, mixes those outputs before they are stored. Where a
    global average follows a 1x1 ``nn.Conv1d``, perhaps with an ``AdaptiveAvgPool1d`` before it, the
    average is taken first. The outputs differ from those of ``model.eval()`` by rounding.

    All modules stay in place, with their names, hooks and state; what changes is how a Sequential
    runs. Whoever indexes it, slices it, loops over it, hooks, trains, loads or converts the copy
    gets what the original would give. Modules are run one by one, as in the original, where
    merging them could be noticed or could change the result: while one of them asks for gradients,
    is in training mode or has hooks or its own ``forward``; for inputs that ask for gradients, or
    have no batch dimension; under torch.compile, torch.jit, torch.export, torch.func, autocast and
    modes that see functions or operations (but for ``torch.set_default_device``); for subclasses, a
    BatchNorm without running statistics or of another size or dtype, and where folded weights would
    not be finite.

    The folded weights are made at the first call, and again after every change of a parameter,
    buffer, pattern or ``eps``. Only in-place writes that PyTorch does not count are not seen, when
    they go into parameters that ask for no gradient: through ``.data`` (``p.data.copy_(q)``),
    ``.numpy()``, from another process, or ``F.batch_norm(..., training=True)`` on the statistics.
    Call ``eval()`` on the copy after them.

    Args:
        model: any module; left exactly as it is.

    Returns:
        A copy in eval mode whose parameters ask for no gradient. To train it, call
        ``requires_grad_(True)`` and ``train()``; it is fast again after ``requires_grad_(False)``
        and ``eval()``.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
        ValueError: a parameter or buffer holds no data: on the meta device, or of a lazy module
            that has not run yet.

    Example:
        >>> model = nn.Sequential(nn.Conv1d(2, 3, 5), nn.BatchNorm1d(3), nn.ReLU())
        >>> fast, x = optimize_for_inference(model), torch.randn(4, 2, 9)
        >>> torch.allclose(fast(x), model.eval()(x), atol=1e-5)
        True

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2 (folding).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, but got {type(model).__name__}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta or is_lazy(tensor):
            raise ValueError(
                f"every parameter and buffer must hold data, but {name} does not; load the model's "
                "state, or run it once if it has lazy modules"
            )
    # What is made in inference mode could not be used outside of it, nor be watched.
    with torch.inference_mode(False), torch.no_grad():
        fast = deepcopy_model(model).eval()
    for parameter in fast.parameters():  # requires_grad_() refuses ScriptModules
        parameter.requires_grad_(False)
    for module in fast.modules():
        if type(module) in _INSTEAD_OF and "forward" not in vars(module):
            leaves = [leaf for _, leaf in _leaves(module)]
            if any(isinstance(part, Merged) for part in split(leaves)):
                module.__class__ = _INSTEAD_OF[type(module)]
    return fast


def _leaves(sequential: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield ``(the Sequential it stands in, module)`` in the order in which they run.

    A Sequential inside of a Sequential is no more than its modules, unless calling it does more.
    """
    modules: Any = sequential._modules.values()  # None among them fails when it is called
    for module in modules:
        if type(module) in _TRANSPARENT and not has_code_of_its_own(module):
            yield from _leaves(module)
        else:
            yield sequential, module


class _Inference(nn.Sequential):
    """A sequence that merges neighbours where nobody can tell."""

    _plan: tuple[list[int], list[Merged | tuple[nn.Module, list[nn.Module]]]] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Run the modules in their order."""
        # A slice of this one begins in training mode, so none is folded for a single call.
        if self.training or not _nothing_watches():
            return super().forward(input)  # type: ignore[no-any-return, no-untyped-call]
        leaves = list(_leaves(self))
        present = [id(module) for pair in leaves for module in pair]
        plan = self._plan
        if plan is None or plan[0] != present:
            plan = self._plan = (present, _parts(leaves))
        x, done = input, 0  # modules of the next part that the one before has computed
        for part, following in zip_longest(plan[1], plan[1][1:]):
            if isinstance(part, tuple):
                owner, modules = part
                x = _through(owner, modules[done:], x)
                done = 0
                continue
            y = None
            if isinstance(part, MergedSparseConv) and isinstance(following, tuple):
                first = following[1][0]
                y = part.run_with(first, x) if type(first) is nn.Conv1d else None
                done = int(y is not None)
            if y is None:
                y = part.run(x)
            x = _through(self, part.modules, x) if y is None else y
        return x

    def train(self, mode: bool = True) -> _Inference:
        """Forget the folded weights: what wrote into the others may not have been counted."""
        self._plan = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_plan"}

    def __prepare_scriptable__(self) -> nn.Sequential:
        plain = nn.Sequential()
        plain.__dict__.update(self.__getstate__())
        return plain


class InferenceSequential(_Inference):
    """What ``optimize_for_inference`` makes of an ``nn.Sequential``."""


class InferenceBlock(_Inference, Block):
    """What ``optimize_for_inference`` makes of a ``Block``."""


_TRANSPARENT = (nn.Sequential, Block, InferenceSequential, InferenceBlock)
_INSTEAD_OF: dict[type[nn.Module], type[_Inference]] = {
    nn.Sequential: InferenceSequential,
    Block: InferenceBlock,
}


def _parts(
    leaves: list[tuple[nn.Module, nn.Module]],
) -> list[Merged | tuple[nn.Module, list[nn.Module]]]:
    """What can be merged, and between them runs of modules that stand in one Sequential."""
    parts: list[Merged | tuple[nn.Module, list[nn.Module]]] = []
    owners = iter(owner for owner, _ in leaves)
    for part in split([leaf for _, leaf in leaves]):
        if isinstance(part, Merged):
            parts.append(part)
            for _ in part.modules:
                next(owners)
        else:
            pairs = zip(part, owners, strict=False)  # takes of the owners what the part needs
            parts += [
                (owner, [module for module, _ in run])
                for owner, run in groupby(pairs, key=itemgetter(1))
            ]
    return parts


def _through(owner: nn.Module, modules: list[nn.Module], x: Tensor) -> Tensor:
    """Run modules one by one, or as their Block would."""
    if isinstance(owner, Block):
        return owner._through(modules, x)
    for module in modules:
        x = module(x)
    return x


def _function_modes() -> list[Any]:
    if not torch._C._len_torch_function_stack():  # the usual case, asked at every call
        return []
    modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return modes


def _nothing_watches() -> bool:
    """Whether torch just computes: no tracer, cast, transform, mode, hook of all."""
    return (
        runs_eagerly()
        and not torch._C._len_torch_dispatch_stack()
        and not has_hooks_for_all()
        # torch.set_default_device() is a mode, too, but only sees where tensors are made.
        and all(type(mode) is DeviceContext for mode in _function_modes())
    )
