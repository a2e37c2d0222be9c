"""Following the channels of a network through one forward pass.

Every channel of every tensor carries a number. What adds two tensors makes their channels one, what
moves data moves the numbers. So residual connections, concatenation, groups and depthwise layers
need no special rules. What has no rule ends in ``_Tracer.refuse``, which names it.
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
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.pooling import ShortAvgPool1d
from sparseconv.pruning.channels import Channels, Numbers, TracedLayer, numbered_units
from sparseconv.pruning.data import evaluating
from sparseconv.pruning.functions import (
    ALONE,
    MAY_MIX,
    MOVES,
    REDUCTIONS,
    TOGETHER,
    dimensions,
    indices,
)

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
    with evaluating(model), torch.no_grad(), ExitStack() as stack:
        for tensor in tree_leaves(arguments):
            if isinstance(tensor, Tensor) and tensor.dim() > 1:
                tracer.follow(tensor, tracer.numbers.new(tensor.shape[1], fixed=True), 1)
        for name, module in model.named_modules():
            tracer.watch(name, module, stack)
        with tracer.flops, tracer:
            out = model(*arguments)
    tracer.fix(*output_tensors(out))
    for name, module in model.named_modules():  # or it would no longer fit what it reads
        left = isinstance(module, PRUNABLE) and name not in tracer.begun
        if left and module not in tracer.ignored:
            raise ValueError(
                f"{name!r} is not called in eval mode, so that what it reads cannot be followed; "
                "name it in ignore, with the layers whose outputs it reads and those that read its "
                "own, which then keep their channels"
            )
    series = (len(x) for x in tree_leaves(arguments) if isinstance(x, Tensor) and x.dim() > 1)
    n_series = max(1, next(series, 1))
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
    """Return the modules named and all inside of them: a list of layers is not called itself."""
    return {module for name in ignore for module in model.get_submodule(name).modules()}


class _Tracer(TorchFunctionMode):
    def __init__(self, model: nn.Module, ignored: set[nn.Module]) -> None:
        super().__init__()
        self.model, self.ignored = model, ignored
        self.numbers = Numbers()
        self.known: dict[int, tuple[Tensor, Tensor, int]] = {}  # by id: tensor, numbers, dimension
        self.layers: dict[str, TracedLayer] = {}
        self.running: list[str] = []  # names of the modules that are being called
        self.begun: set[str] = set()  # and of all that have been
        self.inside = 0  # of layers that are followed as a whole
        self.flops = FlopCounterMode(display=False)
        self.flops_before, self.flops_of_layers = 0, 0

    # What a tensor's channels are

    def follow(self, tensor: Tensor, numbers: Tensor, dim: int) -> None:
        # The tensor too, so that its id stays its own.
        self.known[id(tensor)] = (tensor, numbers, dim)

    def of(self, tensor: Any) -> tuple[Tensor, int] | None:
        found = self.known.get(id(tensor))
        return None if found is None else found[1:]

    def fix(self, *tensors: Any) -> None:
        for tensor in tensors:
            if (found := self.of(tensor)) is not None:
                self.numbers.fix(found[0])

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
            self.fix(*tree_leaves(arguments))
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
        known = self.of(x)
        if isinstance(module, MODULES_ALONE):
            if known is not None:
                self.follow(output, *known)
            return
        last = isinstance(module, nn.Linear)
        dim = x.dim() - 1 if last else 1
        if known is not None and known[1] != dim:
            self.refuse("a layer along another dimension than the channels'", x)
            known = None
        inputs = self.numbers.new(x.shape[dim], fixed=True) if known is None else known[0]
        if isinstance(module, nn.BatchNorm1d):
            outputs = inputs
        else:
            outputs = self.numbers.new(output.shape[output.dim() - 1 if last else 1])
        samples = output.numel() // max(1, len(outputs))  # of all series, in whatever dimension
        if (before := self.layers.get(name)) is not None:  # called again
            self.numbers.unite(before.inputs, inputs)
            self.numbers.unite(before.outputs, outputs)
            samples += before.samples
        self.tie(module, inputs, outputs)
        self.layers[name] = TracedLayer(module, outputs, inputs, samples)
        self.follow(output, outputs, dim)

    def tie(self, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        """Unite what groups tie: all stay alike; a depthwise layer has filters for each input."""
        groups = getattr(module, "groups", 1)
        if groups == 1:
            return
        if groups == len(inputs):
            multiple = len(outputs) // groups
            self.numbers.unite(inputs.repeat_interleave(multiple), outputs)
            return
        for numbers in (inputs, outputs):
            first, *others = numbers.view(groups, -1)
            for other in others:
                self.numbers.unite(first, other)

    # Functions

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.inside:
            outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            inputs = [x for x in tree_leaves((args, kwargs)) if self.of(x) is not None]
            name = getattr(func, "__name__", str(func))
            if name == "__get__":  # an attribute that is computed, as x.mT
                name = func.__self__.__name__  # type: ignore[attr-defined]
            if name == "prelu" and args[-1].numel() == 1:
                name = "leaky_relu"
            known = not inputs or not outputs
            if not known and not self.followed(name, func, args, kwargs, inputs, outputs):
                self.refuse(repr(name), *inputs)
        return result

    def followed(
        self,
        name: str,
        func: Any,
        args: Any,
        kwargs: Any,
        inputs: list[Tensor],
        outputs: list[Tensor],
    ) -> bool:
        """Follow the inputs' channels to the outputs, if the function's rule is known."""
        one, (_, numbers, dim) = len(inputs) == 1, self.known[id(inputs[0])]
        if name in MOVES:
            # Which channels an index takes may depend on the data.
            by_data = any(self.of(x) is not None for x in indices(name, args))
            return not by_data and self.move(func, args, kwargs, outputs)
        if name in TOGETHER:
            return self.unite(args, kwargs, inputs, outputs[0])
        if name in REDUCTIONS:
            return one and self.reduce(name, args, kwargs, inputs[0], outputs)
        if name in ALONE:
            if name in MAY_MIX and dim in dimensions(name, args, kwargs, inputs[0].dim()):
                self.fix(inputs[0])  # each result depends on all of them
            same = outputs[0].dim() == inputs[0].dim() and outputs[0].shape[dim] == len(numbers)
        else:
            product = name in ("__matmul__", "matmul")
            same = product and inputs[0] is args[0] and dim < inputs[0].dim() - 1
        if one and same:
            self.follow(outputs[0], numbers, dim)
        return one and same

    def move(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> bool:
        """Move the numbers as the data are moved, and see in which dimension they differ then."""
        along = [found[1] for x in tree_leaves((args, kwargs)) if (found := self.of(x)) is not None]

        def numbered(x: Any) -> Any:
            return self.numbered(x, along[0]) if isinstance(x, Tensor) else x

        moved = func(*tree_map(numbered, args), **tree_map(numbered, kwargs))
        results = [x for x in tree_leaves(moved) if isinstance(x, Tensor)]
        for result, output in zip(results, outputs, strict=True):
            dim = _differing(result, along)
            if dim is None:
                return False
            self.follow(output, result.movedim(dim, 0).flatten(1)[:, 0].clone(), dim)
        return True

    def numbered(self, x: Tensor, dim: int) -> Tensor:
        """Return a tensor of the same shape that holds, for each sample, its channel's number.

        One that is not followed yet gets new channels in dimension ``dim``, which stay.
        """
        found = self.of(x)
        if found is None:
            is_index = x.dtype in (torch.bool, torch.int64) and x.dim() < 2
            if is_index or dim >= x.dim():
                return x
            found = self.numbers.new(x.shape[dim], fixed=True), dim
        shape = [1] * x.dim()
        shape[found[1]] = -1
        return found[0].view(shape).expand(x.shape).contiguous()

    def unite(self, args: Any, kwargs: Any, inputs: list[Tensor], output: Tensor) -> bool:
        """Make channels that meet one, aligned at the last dimension as torch broadcasts."""
        numbers, dim = self.known[id(inputs[0])][1:]
        from_end = inputs[0].dim() - dim
        if output.dim() < from_end:  # torch.where(condition) gives indices
            return False
        for other in tree_leaves((args, kwargs)):
            if not isinstance(other, Tensor) or other is inputs[0]:
                continue
            found = self.of(other)
            if found is None:
                if other.dim() >= from_end and other.shape[-from_end] != 1:
                    return False  # a constant for each channel
            elif other.dim() - found[1] != from_end or len(found[0]) != len(numbers):
                return False
            else:
                self.numbers.unite(numbers, found[0])
        self.follow(output, numbers, output.dim() - from_end)
        return True

    def reduce(self, name: str, args: Any, kwargs: Any, x: Tensor, outputs: list[Tensor]) -> bool:
        numbers, dim = self.known[id(x)][1:]
        gone = dimensions(name, args, kwargs, x.dim())
        if dim in gone or not gone:
            self.fix(x)
            return True
        kept = outputs[0].dim() == x.dim()
        for output in outputs:
            self.follow(output, numbers, dim if kept else dim - sum(d < dim for d in gone))
        return True

    def refuse(self, what: str, *inputs: Tensor) -> None:
        """Raise, unless nothing is lost because the channels of these tensors stay in any case."""
        if inputs and all(self.numbers.are_fixed(own[0]) for x in inputs if (own := self.of(x))):
            return
        where = self.running[-1] if self.running else ""
        # Only the whole model contains what its forward calls itself, and cannot be ignored.
        around = "a module around it" if where else "the layers whose outputs it takes"
        raise ValueError(
            f"cannot follow channels through {what} in {where or 'the model itself'} "
            f"({type(self.model.get_submodule(where)).__name__}); name {around} in ignore, and all "
            "of its channels are kept"
        )


def _differing(numbers: Tensor, along: Iterable[int]) -> int | None:
    """Return the only dimension along which numbers differ; of one channel, the first of size 1."""
    if numbers.numel() == 0:
        return None
    every = range(numbers.dim())
    dims = [dim for dim in every if (numbers != numbers.narrow(dim, 0, 1)).any()]
    if not dims:
        dims = [dim for dim in (*along, *every[1:]) if numbers.shape[dim : dim + 1] == (1,)][:1]
    return dims[0] if len(dims) == 1 else None
