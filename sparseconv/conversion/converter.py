"""Replace layers with sparse ones where that is faster, and sparse layers with dense ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from torch.utils._pytree import tree_leaves

from sparseconv.conversion.candidates import Candidate, find_candidates, weight_and_mask
from sparseconv.core.blocks import as_block
from sparseconv.core.checks import share
from sparseconv.core.modules import check_not_wrapped, deepcopy_model, hooks_of, replace
from sparseconv.measure.progress import progress
from sparseconv.measure.records import INFERENCE, TRAINING, LayerReport, Verdict
from sparseconv.measure.timing import LEAST_ROUNDS, LEAST_SECONDS
from sparseconv.nn.sparse_layer import SparseLayer
from sparseconv.profiling.stopwatch import Stopwatch, time_layer
from sparseconv.running import Call, capture, close, copied_arguments

# Up to this density every row of benchmarks/results/bench.json was faster sparse than as nn.Conv1d,
# but that file has none of the tiniest layers, and bfloat16 depends on the CPU.
MAX_DENSITY = 0.2
Candidates = Sequence[Candidate]
# What a layer of the class nn.Conv1d has, pruned or not.
KNOWN = {"weight", "bias", "weight_orig", "weight_mask", "parametrizations"}
KNOWN |= vars(nn.Conv1d(1, 1, 1, device="meta")).keys()
EMPTY = "no weight is active, so the output does not depend on the input; prune this layer less"


@dataclass(frozen=True, kw_only=True, repr=False)
class ConversionReport(LayerReport):
    """Report what ``convert`` did; printing it shows a table.

    Attributes:
        layers: a ``LayerTimes`` for every ``nn.Conv1d``, in the model's order.
        training: whether training, rather than inference, decided.
        machine: processor, threads, instruction set and versions.

    Example:
        >>> import torch, sparseconv as sc
        >>> model, x = nn.Sequential(nn.Conv1d(4, 8, 9)), torch.randn(2, 4, 50)
        >>> report = sc.convert(model, x, layers=["0"]).report
        >>> print(report.layers[0].verdict, sorted(report.layers[0].times))
        named in layers ['training']
    """

    title: ClassVar[str] = "Converted layers"
    training: bool

    def summary(self) -> list[str]:
        """Return the totals, notes and conditions, one line each."""
        count = sum(layer.verdict.converts for layer in self.layers)
        lines = [f"{count} of {len(self.layers)} layers are now sparse"]
        notes = [(layer.name, note) for layer in self.layers for note in layer.notes]
        notes += [(layer.name, EMPTY) for layer in self.layers if layer.nnz == 0]
        for note in dict.fromkeys(note for _, note in notes):
            names = [name for name, found in notes if found == note]
            who = ", ".join(names) if len(names) < 5 else f"{len(names)} layers"
            lines.append(f"{who}: {note}")
        if not any(layer.calls for layer in self.layers):
            return [
                *lines,
                "no layer was measured, nor was it checked that the model runs the sparse layers: "
                "with an example_input, measured times decide about every layer that it reaches "
                "and that has zeros or a mask and, with unpruned=True, about the others",
            ]
        lines.append(f"verdicts are based on {TRAINING if self.training else INFERENCE} times")
        return [*lines, *self.conditions()]


class Conversion(NamedTuple):
    """Contain the converted model and the report."""

    model: nn.Module
    report: ConversionReport


@torch.inference_mode(False)  # tensors made in that mode could not train later
def convert(
    model: nn.Module,
    example_input: Any = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    layers: Iterable[str] | None = None,
    max_density: float | None = None,
    unpruned: bool = False,
    block: int | tuple[int, int] = 1,
    training: bool = True,
    inplace: bool = False,
    rounds: int = LEAST_ROUNDS,
    least_seconds: float = LEAST_SECONDS,
    verbose: bool | None = None,
) -> Conversion:
    """Replace a pruned model's convolutions, also transposed ones, where that is faster.

    Weights outside a layer's mask are inactive. The mask comes from ``masks``,
    ``torch.nn.utils.prune`` or ``torch.ao.pruning``; without a mask, zeros are inactive. Outputs
    differ from those of the masked model only by rounding.

    - With ``example_input``, a layer becomes sparse if a measurement shows, with 95 % confidence,
      that it is faster than a plain ``nn.Conv1d``. Layers that differ only in which weights are
      active are timed once.
    - With ``layers``, exactly these layers become sparse; ``example_input`` only times them.
    - With neither, layers with a density of at most ``max_density``, rounded to whole weights or
      units, become sparse. Nothing is measured, so tiny layers may become slower. On the CPU,
      bfloat16 layers stay dense unless ``max_density`` is given.

    Layers that the input does not reach, or whose output could differ, stay dense; the report
    states the reason, and docs/converting.md lists them. There, weights outside ``masks`` are set
    to 0, but training may change them. A sparse layer keeps the name, position, bias, mode,
    ``requires_grad``, dtype, device and added attributes, but has ``values`` instead of ``weight``.

    Build the optimizer from the converted model's parameters: an older optimizer still references
    the dense weights.

    Args:
        model: any module, before ``torch.compile`` or a distributed wrapper.
        example_input: the model's argument, a tensor or array on the CPU, or a tuple of arguments.
        masks: a dict that maps names of layers or parameters (``"conv.weight"``) to masks ``(C_out,
            C_in // groups, K)`` of bools, or of zeros and ones.
        layers: names of the layers to convert.
        max_density: default 0.2; not allowed with ``example_input`` or ``layers``.
        unpruned: also measure layers without inactive weights; with few channels and long kernels,
            they are often faster sparse. This requires ``example_input``, and no ``layers``.
        block: see ``KernelCSR``. A layer that is smaller than a block, or whose mask is not
            constant within each block, uses single weights.
        training: whether the result is to be trained. If so, the time of a training step decides;
            otherwise the inference time decides, and masks of dense layers become permanent.
        inplace: change ``model`` itself, unless it is an ``nn.Conv1d``. Do not use replaced layers
            afterwards.
        rounds: pairs of measurements, at least 6; doubled, up to three times, while unclear.
        least_seconds, verbose: as in ``profile``.

    Raises:
        TypeError, ValueError: no module, or one without ``nn.Conv1d``; unknown names; a mask of the
            wrong shape, or for a layer that cannot be converted; mutually exclusive options.
        NotImplementedError: a measurement on a device other than the CPU.

    Example:
        >>> import torch, torch.nn.utils.prune as prune, sparseconv as sc
        >>> model = nn.Sequential(nn.Conv1d(8, 16, 9), nn.ReLU(), nn.Conv1d(16, 4, 1))
        >>> _ = prune.l1_unstructured(model[0], "weight", amount=0.9)
        >>> sparse, report = sc.convert(model)  # pass example_input=x to measure
        >>> sparse[0]
        SparseConv1d(8, 16, kernel_size=(9,), stride=(1,), nnz=115, density=9.98 %)
        >>> torch.equal(sc.to_dense(sparse)[0].weight, model[0].weight)
        True
    """
    if max_density is not None:
        max_density = share("max_density", max_density)
        if example_input is not None or layers is not None:
            raise ValueError(
                "max_density cannot be combined with example_input or layers, which decide "
                "instead; pass either max_density or those"
            )
    if unpruned and (example_input is None or layers is not None):
        raise ValueError(
            "unpruned=True requires example_input and cannot be combined with layers, because "
            "measured times decide which layers are converted"
        )
    candidates = find_candidates(model, masks or {}, layers or (), as_block(block))
    limit = MAX_DENSITY if max_density is None else max_density
    for found in candidates:
        found.verdict = _decide(found, example_input, layers, max_density, unpruned)
    if example_input is not None:
        wanted = [x for x in candidates if x.verdict in (Verdict.UNREACHED, Verdict.NAMED)]
        stopwatch = Stopwatch(training, rounds, least_seconds, decides=True)
        with stopwatch.running({found.conv: found.name for found in wanted}):
            _measure(model, candidates, wanted, example_input, stopwatch, verbose)
    chosen = [found for found in candidates if found.verdict.converts]
    converted = _install(
        model if inplace else deepcopy_model(model), candidates, chosen, permanent=not training
    )
    report = ConversionReport(
        layers=tuple(found.record(limit, training) for found in candidates),
        training=training,
    )
    return Conversion(converted, report)


def _decide(
    found: Candidate, example_input: Any, layers: Any, max_density: float | None, unpruned: bool
) -> Verdict:
    """Return the verdict on a layer; ``UNREACHED`` is final unless the layer is measured."""
    if found.sparse is None:
        return Verdict.OBSTACLE
    if layers is not None:
        return Verdict.NAMED if found.named else Verdict.NOT_NAMED
    pattern, values = found.sparse.pattern, found.sparse.values
    if pattern.nnz == pattern.numel and not unpruned:
        return Verdict.UNPRUNED
    if example_input is not None:
        return Verdict.UNREACHED
    if max_density is None:
        if values.dtype is torch.bfloat16 and values.device.type == "cpu":
            return Verdict.BFLOAT16
        max_density = MAX_DENSITY
    # Pruning to this density rounds to whole units, which are weights if there are no blocks.
    few = pattern.units().nnz <= max_density * pattern.units().numel + 0.5
    return Verdict.FEW if few else Verdict.MANY


def _measure(
    model: nn.Module,
    candidates: Candidates,
    wanted: Candidates,
    example_input: Any,
    stopwatch: Stopwatch,
    verbose: bool | None,
) -> None:
    """Measure the named or undecided layers on the inputs that they get once all are sparse.

    Layers with which the model raises an error or returns something else stay dense.
    """

    def run(chosen: Candidates) -> tuple[list[Tensor], dict[Candidate, list[Call]]]:
        """Run a copy in which the chosen layers are sparse; return its output and their calls."""
        copied = _install(deepcopy_model(model), candidates, chosen)
        layers = {copied.get_submodule(found.path): found for found in chosen}
        output, calls = capture(copied, layers, copied_arguments(model, example_input))
        leaves = tree_leaves(output)
        parts = [x if isinstance(x, Tensor) else getattr(x, "__dict__", x) for x in leaves]
        data = [x for x in tree_leaves(parts) if isinstance(x, Tensor | float | int)]
        outputs = [
            x.detach() if isinstance(x, Tensor) else torch.tensor(x, device="cpu") for x in data
        ]
        return outputs, {layers[layer]: found for layer, found in calls.items()}

    expected, _ = run([])

    def fault(chosen: Candidates) -> str:
        try:
            outputs, _ = run(chosen)
        except Exception as error:  # the model's code may raise anything
            return f"if it is sparse, the model raises {type(error).__name__}: {error}"
        same = len(outputs) == len(expected) and all(map(close, outputs, expected))
        return "" if same else "if it is sparse, the model's output changes, perhaps at random"

    if fault(wanted):
        kept: list[Candidate] = []
        for found in wanted:
            if reason := fault([*kept, found]):
                found.refuse(reason)
            else:
                kept.append(found)
        wanted = kept
    _, called = run(wanted)
    for found in wanted:
        if found not in called:
            found.notes += (f"{Verdict.UNREACHED}",)
    for found, calls in progress(called.items(), verbose, desc="layers"):
        found.times = time_layer(found.name, found.sparse, calls, stopwatch)
        if found.verdict is Verdict.UNREACHED:
            found.verdict = found.times.verdict


def _install(
    model: nn.Module, candidates: Candidates, chosen: Candidates, permanent: bool = False
) -> nn.Module:
    """Put copies of the chosen sparse layers into the model.

    Mask the other layers, so that the choice does not affect what the model computes; if
    ``permanent``, they lose their pruning hooks.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    successors: dict[nn.Module, nn.Module] = {}
    for found in candidates:
        conv = modules[found.path]
        if found in chosen:
            sparse: Any = copy.deepcopy(found.sparse)
            sparse.bias = conv.bias  # the same object, since it may be shared
            for name in vars(conv).keys() - KNOWN:
                if not hasattr(sparse, name):
                    setattr(sparse, name, getattr(conv, name))
            successors[conv] = sparse
        elif found.given is not None or (found.pruned and permanent):
            weight, _ = weight_and_mask(conv)
            with torch.inference_mode(weight.is_inference()), torch.no_grad():
                if found.given is not None:
                    weight.masked_fill_(~found.given.to(weight.device), 0)
                if found.pruned and permanent:
                    undo: Any = remove_parametrizations if is_parametrized(conv) else prune.remove
                    undo(conv, "weight")
    return replace(model, successors)


@torch.inference_mode(False)
def to_dense(model: nn.Module) -> nn.Module:
    """Copy a model with a dense layer of torch in place of every sparse one.

    This reverses ``convert``, for tools that support only torch's layers. Active weights and biases
    keep their exact values; inactive weights become +0.0. Names, mode and ``requires_grad`` are
    preserved. Values and biases that pruning or a parametrization computes become plain parameters;
    added attributes are lost. See ``SparseConv1d.to_dense`` for unequal padding, as in a DSN.

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
