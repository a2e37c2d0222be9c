"""Make a trained network faster in inference."""

from __future__ import annotations

import ast
import functools
import re
from typing import Any

import torch
from torch import nn

from sparseconv.core.modules import deepcopy_model

# A module in the name of a guard: optimized._modules['0']._modules["it's"]
_CHILD = re.compile(r"""\._modules\[('(?:[^'\\]|\\.)*'|"[^"]*")\]""")
_OF_MODEL = re.compile(rf"\boptimized\b(?:{_CHILD.pattern})*")


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """Copy a trained model, and compile the copy with ``torch.compile(backend="sparseconv")``.

    In the copy, BatchNorm is folded into the weights of the convolution before it, unless its
    weights outnumber its outputs, and ReLU is applied where a convolution stores its outputs.
    Tensors stay in the kernels' memory order between layers; see ``compiled_report``. Outputs
    differ from those of ``model.eval()`` only by rounding. All modules keep their names and their
    state. A copy or a pickle of the copy is not compiled. Later changes of weights, patterns and
    modes are followed. Those of other attributes and of hooks are only in modules of other classes
    than torch's and this package's.

    Args:
        model: any module; it is left unchanged.

    Returns:
        The copy, in eval mode, whose parameters require no gradient.

    Raises:
        TypeError, ValueError: no module; a lazy module has not run yet.

    Example:
        >>> from sparseconv import SparseConv1d
        >>> model = nn.Sequential(SparseConv1d(2, 3, 5), nn.BatchNorm1d(3), nn.ReLU())
        >>> fast, x = optimize_for_inference(model), torch.randn(4, 2, 9)
        >>> torch.allclose(fast(x), model.eval()(x), atol=1e-5)
        True

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2 (folding).
    """
    # Inference tensors cannot be used in training, and do not count writes.
    with torch.inference_mode(False), torch.no_grad():
        fast = deepcopy_model(model).eval()
    for parameter in fast.parameters():  # fast.requires_grad_() refuses ScriptModules
        parameter.requires_grad_(False)

    optimized = fast  # the name in guards: only this frame belongs to one model

    def call(*args: Any, **kwargs: Any) -> Any:
        return optimized._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    call.__code__ = call.__code__.replace()  # torch compiles a code object only a few times
    # As ``fast.compile()`` does, which skips the forward of torch's own modules.
    options: Any = {"guard_filter_fn": functools.partial(_guards_worth_their_time, fast)}
    fast._compiled_call_impl = torch.compile(call, backend="sparseconv", options=options)
    return fast


def _guards_worth_their_time(model: nn.Module, entries: Any) -> list[bool]:
    """Leave out guards on attributes of torch's and these modules, except on ``training``.

    Other classes may change their attributes in ``forward``. After a graph break, torch compiles
    frames that belong to a class, where only guards tell modules apart: all of them are kept.
    """
    kept = []
    for entry in entries:
        found = _OF_MODEL.search(entry.name)
        path = map(ast.literal_eval, _CHILD.findall(found[0])) if found else ()
        package = type(model.get_submodule(".".join(path))).__module__.partition(".")[0]
        known = found and package in ("torch", "sparseconv")
        kept.append(not known or entry.name.endswith(".training"))
    return kept
