"""Follow the channels of a network through one forward pass.

Every channel of every tensor has a number. An operation that adds two tensors unites their numbers,
and one that moves data moves the numbers. Therefore, residual connections, concatenation, groups
and depthwise layers need no special rules. Channels are kept if an operation that uses them cannot
be followed; ``Channels.left`` contains the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from sparseconv.core.modules import owners_of
from sparseconv.nn.pooling import ShortAvgPool1d
from sparseconv.pruning.channels import (
    FILTERED,
    NORMS,
    ChannelNumbers,
    Channels,
    Layer,
    UnitSet,
    numbered_units,
)
from sparseconv.pruning.operations import APART, READS, Call, SameDraws
from sparseconv.running import evaluating, output_tensors

PRUNABLE = (*FILTERED, *NORMS)
# A layer has one of these attributes if its outputs match its inputs, otherwise two.
WIDTHS = (
    "in_channels", "in_features", "num_features", "num_channels", "out_channels", "out_features",
)  # fmt: skip
UNDO = "torch.nn.utils.prune.remove, parametrize.remove_parametrizations, remove_weight_norm"


def trace(
    model: nn.Module,
    arguments: tuple[Any, ...],
    ignore: Iterable[str] = (),
    failed: Mapping[UnitSet, str] | None = None,
) -> Channels:
    """Follow the channels of a network from its inputs to its outputs while it runs in eval mode.

    Args:
        model: left unchanged.
        arguments: example inputs, with channels in their second dimension.
        ignore: as in ``prune_filters``, with the same errors.
        failed: sets of an earlier result whose units are kept, each with the reason.
    """
    tracer = _Tracer(model, kept_modules(model, ignore))
    series = [x for x in tree_leaves(arguments) if isinstance(x, Tensor) and x.dim() > 1]
    for x in series:
        given = tracer.numbers.new(x.shape[1], "its channels are the model's input")
        tracer.numbers.follow(x, given, 1)
    with evaluating(model), ExitStack() as stack:
        for name, module in model.named_modules():
            tracer.watch(name, module, stack)
        # Equal draws everywhere make noise constant, so that operations can be repeated.
        try:
            with tracer.flops, SameDraws(), tracer:
                out = model(*arguments)
        except Exception as error:  # the model may run any code
            stack.close()
            model(*arguments)  # raises the model's error, if it also fails without tracing
            raise NotImplementedError(
                f"the model runs, but its channels cannot be followed in {tracer.place()}: "
                f"{type(error).__name__}: {error}; remove that part before pruning"
            ) from error
        tracer.numbers.fix("the model returns its channels", *output_tensors(out))
    return tracer.found(max(1, len(series[0])) if series else 1, failed or {})


def kept_modules(model: nn.Module, ignore: Iterable[str]) -> dict[nn.Module, str]:
    """Return the modules that keep all channels, each with the reason.

    They are named in ``ignore`` or inside such a module, or have computed or shared parameters.
    """
    kept: dict[nn.Module, str] = {}
    for module in model.modules():
        for key in ("weight", "values", "bias") if isinstance(module, PRUNABLE) else ():
            if hasattr(module, key) and key not in module._parameters:
                why = f"its {key!r} is computed from other parameters; first undo this ({UNDO})"
                kept[module] = why
    for owners in owners_of(model).values():
        for name, other in zip(owners, owners[1:] + owners[:1], strict=True):
            if name != other and isinstance(model.get_submodule(name), PRUNABLE):
                kept[model.get_submodule(name)] = f"it shares a parameter with {other!r}"
    modules = dict(model.named_modules(remove_duplicate=False))  # a shared module by each name
    for name in ignore:
        if name not in modules:
            raise ValueError(
                f"ignore must contain names from model.named_modules(), but got {name!r}"
            )
        kept |= dict.fromkeys(modules[name].modules(), "it is named in ignore")
    return kept


class _NoModules(ModuleTracker):
    """Track no modules: the tracker's hooks fail if ``forward`` calls ``autograd.grad``."""

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class _Tracer(TorchFunctionMode):
    def __init__(self, model: nn.Module, kept: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.model, self.kept = model, kept
        self.numbers = ChannelNumbers()
        self.layers: dict[str, Layer] = {}
        self.left: dict[str, str] = {}  # layers that keep all channels, and why
        self.running: list[str] = []  # names of the modules that are being called
        self.inside = 0  # number of running layers that are followed as a whole
        self.flops = FlopCounterMode(display=False)
        self.flops.mod_tracker = _NoModules()
        self.flops_before, self.flops_of_layers = 0, 0
        self.own: dict[int, tuple[str, Tensor]] = {}  # parameters and buffers outside layers, by id
        for name, module in model.named_modules():
            if module in kept or isinstance(module, PRUNABLE):
                continue
            parameters = module.named_parameters(recurse=False)
            for key, x in chain(parameters, module.named_buffers(recurse=False)):
                self.own[id(x)] = f"{name}.{key}" if name else key, x
                wide = [dim for dim in range(x.dim()) if x.shape[dim] > 1]
                if len(wide) == 1:  # for others, broadcasting decides
                    self.numbers.follow(x, self.numbers.new(x.numel()), *wide)

    # Modules

    def watch(self, name: str, module: nn.Module, stack: ExitStack) -> None:
        whole = module in self.kept or isinstance(module, (*PRUNABLE, ShortAvgPool1d))

        def before(_: nn.Module, args: Any) -> None:
            self.running.append(name)
            if not self.inside:
                self.flops_before = self.flops.get_total_flops()
            self.inside += whole

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.inside -= whole
            if whole and not self.inside:
                tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
                self.called(name, module, tensors, output)
            self.running.pop()

        stack.callback(module.register_forward_pre_hook(before, prepend=True).remove)
        stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)

    def called(self, name: str, module: nn.Module, given: list[Tensor], output: Any) -> None:
        why = self.kept.get(module)
        if isinstance(module, ShortAvgPool1d) and why is None:  # averaging is not counted
            self.flops_of_layers += self.flops.get_total_flops() - self.flops_before
            if (known := self.numbers.free(given[0])) is not None:
                self.numbers.follow(output, *known)
            return
        if (why := why or _unlike(module, given, output)) is not None:
            self.left[name] = why
            self.numbers.fix(f"its channels are used by {name!r}: {why}", *given)
            return
        x, channel_dim = given[0], -1 if isinstance(module, nn.Linear) else 1
        dim = channel_dim % x.dim()
        known = self.numbers.get(x)
        if known is None or known[1] != dim:
            if (other := self.numbers.free(x)) is not None:
                why = (
                    f"its input has channels in dimension {other[1]}, but it reads them in "
                    f"dimension {dim}"
                )
                self.left[name] = why
                if channel_dim == -1:
                    self.numbers.follow(output, *other)
                else:
                    self.numbers.fix(f"its channels are used by {name!r}: {why}", x)
                return
            known = self.numbers.new(x.shape[dim], "it has a filter for each kept input channel"), 0
        # Channels.macs counts these, so they must not be among the others.
        self.flops_of_layers += self.flops.get_total_flops() - self.flops_before
        inputs = outputs = known[0]
        if not isinstance(module, NORMS):
            outputs = self.numbers.new(output.shape[channel_dim])
        # Of all series, in any dimension. A transposed convolution multiplies each input.
        computed = x if isinstance(module, nn.ConvTranspose1d) else output
        samples = computed.numel() // max(1, computed.shape[channel_dim])
        if (before := self.layers.get(name)) is not None:  # called again
            self.numbers.unite(before.inputs, inputs)
            self.numbers.unite(before.outputs, outputs)
            samples += before.samples
        self.tie(module, inputs, outputs)
        self.layers[name] = Layer(module, outputs, inputs, samples)
        self.numbers.follow(output, outputs, dim)
        if len(outputs) == 1:
            self.numbers.fix("each layer keeps at least one filter", output)

    def tie(self, module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        """Unite the channels that groups tie; a depthwise layer ties outputs to inputs."""
        if isinstance(module, nn.GroupNorm):  # a group is removed as a whole
            for group in inputs.view(module.num_groups, -1):
                self.numbers.unite(group[:1].expand(len(group)), group)
            return
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
        if self.inside:
            return func(*args, **kwargs)
        call = Call(self.numbers, self.own, func, args, kwargs)
        result = func(*args, **kwargs)
        call.outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        of_data = call.outputs or call.name in READS.split()  # not a size or a type
        if not of_data or call.name in APART.split():
            return result
        before = self.flops.get_total_flops()
        if call.inputs:
            call.follow()
        if call.fixed:
            where = f"{call.name!r} in {self.place()}"
            why = f"its channels are used by {where}, which cannot be followed"
            self.numbers.fix(why, *call.fixed)
        self.flops_of_layers += self.flops.get_total_flops() - before
        for key, x in call.tensors.items():
            if self.numbers.get(x) is None:
                self.own.pop(key, None)  # a parameter whose use is unknown
        return result

    def place(self) -> str:
        """Describe the module that runs."""
        module = self.running[-1] if self.running else ""
        kind = type(self.model.get_submodule(module)).__name__
        return f"{module or 'the model itself'} ({kind})"

    # After the run

    def found(self, n_series: int, failed: Mapping[UnitSet, str]) -> Channels:
        for name, module in self.model.named_modules():
            if module in self.kept:
                self.left[name] = self.kept[module]
            elif name not in self.layers:
                self.left.setdefault(name, "this example_input does not call it")
        for name, why in self.left.items():
            if (layer := self.layers.get(name)) is not None:
                for numbers in (layer.inputs, layer.outputs):
                    self.numbers.fix_numbers(why, numbers)
        vectors = {name: x for name, x in self.own.values() if self.numbers.get(x) is not None}
        flops = self.flops.get_total_flops() - self.flops_of_layers
        modules = dict(self.model.named_modules())
        left = {name: why for name, why in self.left.items() if isinstance(modules[name], FILTERED)}
        for group, why in failed.items():
            for name, rows in group.rows.items():
                left[name] = why
                self.numbers.fix_numbers(why, self.layers[name].outputs[rows.flatten()])
        kinds = ", ".join(kind.__name__ for kind in FILTERED)
        for name, x in self.model.named_parameters():
            owner = name.rpartition(".")[0].partition(".parametrizations")[0]
            module, wide = modules[owner], sum(size > 1 for size in x.shape) > 1
            if wide and name not in vectors and not isinstance(module, PRUNABLE):
                why = f"{type(module).__name__} is not pruned; only {kinds} are"
                left[owner or "the model itself"] = self.kept.get(module, why)
        return numbered_units(
            self.layers, self.numbers, vectors, n_series, flops // (2 * n_series), left
        )


def _unlike(module: nn.Module, given: list[Tensor], output: Any) -> str | None:
    """Return why a layer cannot be followed like its base class, or None if it can."""
    groups = getattr(module, "groups", 1)
    if isinstance(module, nn.GroupNorm) and module.num_groups == 1:
        return "it normalizes over all channels"
    if isinstance(module, nn.ConvTranspose1d) and not (
        groups == 1 or groups == module.in_channels == module.out_channels
    ):
        return "it is a grouped transposed convolution"
    dim = -1 if isinstance(module, nn.Linear) else 1
    shapes = [x.shape for x in (*given[:1], output) if isinstance(x, Tensor)]
    widths = [getattr(module, key) for key in WIDTHS if hasattr(module, key)]
    if [shape[dim] for shape in shapes] != [widths[0], widths[-1]]:
        return "its number of input or output channels differs from that of its base class"
    return None
