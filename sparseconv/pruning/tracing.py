"""Following the channels of a network through one forward pass.

Every channel of every tensor carries a number. What adds two tensors makes their channels one, what
moves data moves the numbers. So residual connections, concatenation, groups and depthwise layers
need no special rules. How operations treat channels is in ``operations.py``, what layers do here.
What has no rule ends in ``_Tracer.refuse``, which names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from numbers import Number
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.modules import owners_of
from sparseconv.nn.pooling import ShortAvgPool1d
from sparseconv.pruning.channels import Channels, Layer, Numbers, numbered_units
from sparseconv.pruning.data import evaluating
from sparseconv.pruning.operations import RULES, Call

PRUNABLE = (nn.Conv1d, SparseConv1d, nn.Linear, nn.BatchNorm1d)
MODULES_ALONE = (ShortAvgPool1d,)  # each channel by itself, whatever functions it calls


def trace(model: nn.Module, arguments: tuple[Any, ...], ignore: Iterable[str] = ()) -> Channels:
    """Follow the channels of a network from its inputs to its outputs, as it runs in eval mode.

    Args:
        model: run once; left as it was.
        arguments: example inputs, with channels in their second dimension.
        ignore: names of modules that keep all of their channels, whatever they compute, and so do
            those inside of them.

    Raises:
        ValueError: something that only ``ignore`` helps with, named; the outputs are not
            ``output_tensors``.
    """
    tracer = _Tracer(model, ignored_modules(model, ignore))
    series = [x for x in tree_leaves(arguments) if isinstance(x, Tensor) and x.dim() > 1]
    for x in series:
        tracer.numbers.follow(x, tracer.numbers.new(x.shape[1], fixed=True), 1)
    with evaluating(model), torch.no_grad(), ExitStack() as stack:
        for name, module in model.named_modules():
            tracer.watch(name, module, stack)
        with tracer.flops, tracer:
            out = model(*arguments)
    tracer.numbers.fix(*output_tensors(out))
    for name, module in model.named_modules():  # or it would no longer fit what it reads
        left = isinstance(module, PRUNABLE) and name not in tracer.begun
        if left and module not in tracer.ignored:
            raise ValueError(
                f"{name!r} is not called in eval mode, so that what it reads cannot be followed; "
                "name it in ignore, with the layers whose outputs it reads and those that read its "
                "own, which then keep their channels"
            )
    n_series = max(1, len(series[0])) if series else 1
    flops = tracer.flops.get_total_flops() - tracer.flops_of_layers
    return numbered_units(tracer.layers, tracer.numbers, n_series, flops // (2 * n_series))


def output_tensors(out: Any) -> list[Tensor]:
    """Return the tensors of a model's output: in tuples, lists, dicts and dataclasses.

    Raises:
        ValueError: there are none, or something may hold some that cannot be seen.
    """
    found: list[Tensor] = []
    expected = "the model must return tensors, alone or in tuples, lists, dicts or dataclasses"
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += output_tensors([getattr(leaf, field.name) for field in fields(leaf)])
        elif not isinstance(leaf, Number | str | NoneType):
            raise ValueError(f"{expected}, but its output holds a {type(leaf).__name__}")
    if not found:
        raise ValueError(f"{expected}, but returned {type(out).__name__} without any")
    return found


def ignored_modules(model: nn.Module, ignore: Iterable[str]) -> set[nn.Module]:
    """Return the modules named and all inside of them: a list of layers is not called itself.

    Raises:
        ValueError: there is no module of a name.
    """
    modules = dict(model.named_modules(remove_duplicate=False))  # a shared one by each of its names
    for name in ignore:
        if name not in modules:
            raise ValueError(f"ignore names {name!r}, but model.named_modules() has no such name")
    return {module for name in ignore for module in modules[name].modules()}


def check_parameters(model: nn.Module, ignored: set[nn.Module]) -> None:
    """Refuse parameters that are computed from others, or that several layers share."""
    for name, module in model.named_modules():
        if not isinstance(module, PRUNABLE) or module in ignored:
            continue
        for key in ("weight", "values", "bias"):
            if hasattr(module, key) and key not in module._parameters:
                raise ValueError(
                    f"{key!r} of {name!r} is computed from other parameters; undo that "
                    "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations), or name "
                    "the layer in ignore"
                )
    for owners in owners_of(model).values():
        if len(owners) > 1:
            raise ValueError(
                f"{owners[0]!r} and {owners[1]!r} share a parameter; only a layer that is used "
                "twice as a whole can be pruned"
            )


class _Tracer(TorchFunctionMode):
    def __init__(self, model: nn.Module, ignored: set[nn.Module]) -> None:
        super().__init__()
        self.model, self.ignored = model, ignored
        self.numbers = Numbers()
        self.layers: dict[str, Layer] = {}
        self.running: list[str] = []  # names of the modules that are being called
        self.begun: set[str] = set()  # and of all that have been
        self.inside = 0  # of layers that are followed as a whole
        self.flops = FlopCounterMode(display=False)
        self.flops_before, self.flops_of_layers = 0, 0

    # Modules

    def watch(self, name: str, module: nn.Module, stack: ExitStack) -> None:
        whole = module in self.ignored or isinstance(module, (*PRUNABLE, *MODULES_ALONE))

        def before(_: nn.Module, args: Any) -> None:
            self.running.append(name)
            self.begun.add(name)
            if whole and not self.inside:
                self.flops_before = self.flops.get_total_flops()
            self.inside += whole

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.inside -= whole
            if whole and not self.inside:
                self.called(name, module, (args, kwargs), output)
            self.running.pop()

        stack.callback(module.register_forward_pre_hook(before, prepend=True).remove)
        stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)

    def called(self, name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        if module in self.ignored:
            self.numbers.fix(*tree_leaves(arguments))
            return
        x = next((x for x in tree_leaves(arguments) if isinstance(x, Tensor)), None)
        if x is None or not isinstance(output, Tensor):
            return
        if type(module) not in (*PRUNABLE, *MODULES_ALONE):
            # Refused as a first layer, too, or it would silently keep its filters.
            self.refuse("a subclass, which may compute anything,")
        if isinstance(module, nn.Conv1d | SparseConv1d) and x.dim() != 3:
            raise ValueError(
                f"{name!r} must be given (N, C, L), a batch of series, but got {tuple(x.shape)}"
            )
        # Channels.macs counts those of a layer.
        self.flops_of_layers += self.flops.get_total_flops() - self.flops_before
        known = self.numbers.get(x)
        if isinstance(module, MODULES_ALONE):
            if known is not None:
                self.numbers.follow(output, *known)
            return
        channel_dim = -1 if isinstance(module, nn.Linear) else 1
        dim = channel_dim % x.dim()
        if known is not None and known[1] != dim:
            self.refuse("a layer along another dimension than the channels'", x)
            known = None
        inputs = self.numbers.new(x.shape[dim], fixed=True) if known is None else known[0]
        norm = isinstance(module, nn.BatchNorm1d)
        outputs = inputs if norm else self.numbers.new(output.shape[channel_dim])
        samples = output.numel() // max(1, len(outputs))  # of all series, in whatever dimension
        if (before := self.layers.get(name)) is not None:  # called again
            self.numbers.unite(before.inputs, inputs)
            self.numbers.unite(before.outputs, outputs)
            samples += before.samples
        self.tie(module, inputs, outputs)
        self.layers[name] = Layer(module, outputs, inputs, samples)
        self.numbers.follow(output, outputs, dim)

    def tie(self, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        """Unite what groups tie: all stay alike; a depthwise layer has filters for each input."""
        groups = getattr(module, "groups", 1)
        if groups == len(inputs) > 1:
            self.numbers.unite(inputs.repeat_interleave(len(outputs) // groups), outputs)
            return
        for numbers in (inputs, outputs):
            for other in numbers.view(groups, -1):
                self.numbers.unite(numbers[: len(other)], other)

    # Operations

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.inside:
            return result
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        inputs = [x for x in tree_leaves((args, kwargs)) if self.numbers.get(x) is not None]
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # an attribute that is computed, as x.mT
            name = func.__self__.__name__  # type: ignore[attr-defined]
        if inputs and outputs:
            rule = RULES.get(name)
            call = Call(self.numbers, name, func, args, kwargs, inputs, outputs)
            if rule is None or not rule(call):
                self.refuse(repr(name), *inputs)
        return result

    def refuse(self, what: str, *inputs: Tensor) -> None:
        """Raise, unless nothing is lost because the channels of these tensors stay in any case."""
        if inputs and not any(any(self.numbers.roots(self.numbers[x][0])) for x in inputs):
            return
        where = self.running[-1] if self.running else ""
        # Only the whole model contains what its forward calls itself, and cannot be ignored.
        around = "a module around it" if where else "the layers whose outputs it takes"
        raise ValueError(
            f"cannot follow channels through {what} in {where or 'the model itself'} "
            f"({type(self.model.get_submodule(where)).__name__}); name {around} in ignore, and all "
            "of its channels are kept"
        )
