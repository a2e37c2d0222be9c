"""Replace layers with sparse ones where that is faster."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.conversion.candidates import Candidate, find_candidates, weight_and_mask
from sparseconv.conversion.report import Conversion, ConversionReport
from sparseconv.core.checks import share
from sparseconv.measure import machine
from sparseconv.measure.progress import progress
from sparseconv.measure.records import BeforeAfter, Verdict
from sparseconv.measure.timing import LEAST_SECONDS, ROUNDS
from sparseconv.nn.modules import deepcopy_model, replace
from sparseconv.profiling.stopwatch import (
    Stopwatch,
    capture,
    check_on_cpu,
    copied_arguments,
    model_passes,
    time_layer,
)

# Up to this density every row of benchmarks/results/bench.json was faster sparse than as nn.Conv1d,
# but that file has none of the tiniest layers, and bfloat16 depends on the CPU.
MAX_DENSITY = 0.2


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
    rounds: int = ROUNDS,
    least_seconds: float = LEAST_SECONDS,
    verbose: bool | None = None,
) -> Conversion:
    """Replace a pruned model's convolutions, also transposed ones, where that is faster.

    Weights outside a layer's mask are inactive. The mask comes from ``masks``,
    ``torch.nn.utils.prune`` or ``torch.ao.pruning``; without a mask, weights that are zero are
    inactive.

    - With ``example_input``, a layer becomes sparse if a measurement as in ``profile`` shows, with
      95 % confidence, that the sparse layer is faster. The dense layer is measured as a plain
      ``nn.Conv1d``, without pruning hooks.
    - With ``layers``, exactly these layers become sparse; if ``example_input`` is also passed, they
      are measured.
    - With neither, layers with a density of at most ``max_density`` become sparse. Nothing is
      measured, so tiny layers may become slower. On the CPU, bfloat16 layers stay dense unless
      ``max_density`` is given.

    If a subclass pads or crops, as causal convolutions do, its sparse replacement does the same.
    The following layers stay dense, and the report states the reason:

    - subclasses that run different code, and layers with hooks, added attributes or added state;
    - layers whose weight is shared or computed (weight_norm), or whose bias is pruned;
    - layers that the input does not reach or, without ``unpruned``, that have no inactive weights.

    In layers that stay dense, weights outside ``masks`` are set to 0, but training may change them.
    Layers keep their name, position, bias, mode, ``requires_grad``, dtype and device. Outputs
    differ from those of the masked model only by rounding. A sparse layer has ``values`` instead of
    ``weight``; reading ``weight`` raises an error. Hooks on the weight's gradient, and attributes
    and methods that a subclass adds, are lost; the report lists these losses.

    Build the optimizer from the converted model's parameters: an older optimizer still references
    the dense weights.

    Args:
        model: any module, before ``torch.compile`` or a distributed wrapper.
        example_input: the model's argument, a tensor or array on the CPU, or a tuple of arguments.
        masks: a dict that maps names of layers or parameters (``"conv.weight"``) to masks ``(C_out,
            C_in // groups, K)`` of bools, or of zeros and ones.
        layers: names of the layers to convert.
        max_density: default 0.2; not allowed with ``example_input`` or ``layers``.
        unpruned: also measure layers without inactive weights. This requires ``example_input``, and
            cannot be combined with ``layers``. Even without inactive weights, sparse kernels are
            often faster for layers with few channels and long kernels.
        block: see ``KernelCSR``. A layer that is smaller than a block, or whose mask is not
            constant within each block, uses single weights.
        training: also measure a training step, whose time then decides; with False, the inference
            time decides.
        inplace: change ``model`` itself, unless it is an ``nn.Conv1d``. Do not use replaced layers
            afterwards.
        rounds, least_seconds, verbose: as in ``profile``; like ``training``, used only with
            ``example_input``.

    Returns:
        ``(model, report)``: a converted copy, or ``model`` if ``inplace``, and a
        ``ConversionReport``, which prints as a table of layers.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: no ``nn.Conv1d``; unknown names; a mask of the wrong shape, or for a layer that
            cannot be converted; mutually exclusive options.
        NotImplementedError: a measurement on a device other than the CPU.

    Example:
        >>> import torch, torch.nn.utils.prune as prune, sparseconv as sc
        >>> model = nn.Sequential(nn.Conv1d(8, 16, 9), nn.ReLU(), nn.Conv1d(16, 4, 1))
        >>> _ = prune.l1_unstructured(model[0], "weight", amount=0.9)
        >>> sparse, report = sc.convert(model)  # pass example_input=x to measure
        >>> sparse[0]
        SparseConv1d(8, 16, kernel_size=(9,), stride=(1,), nnz=115, density=9.98 %)
        >>> print(report.layers[1].verdict)
        no weight is zero or masked
        >>> torch.equal(sc.to_dense(sparse)[0].weight, model[0].weight)
        True
    """
    if max_density is not None and (example_input is not None or layers is not None):
        raise ValueError(
            "max_density cannot be combined with example_input or layers, which decide instead; "
            "pass either max_density or those"
        )
    if max_density is not None:
        max_density = share("max_density", max_density)
    if unpruned and (example_input is None or layers is not None):
        raise ValueError(
            "unpruned=True requires example_input and cannot be combined with layers, because "
            "measured times decide which layers are converted"
        )
    stopwatch = Stopwatch(training, rounds, least_seconds)
    candidates = find_candidates(model, masks or {}, layers or (), block)
    limit = MAX_DENSITY if max_density is None else max_density
    for found in candidates:
        found.verdict = _decide(found, example_input, layers, max_density, unpruned)
    times: dict[str, BeforeAfter] = {}
    if example_input is not None:
        arguments = copied_arguments(model, example_input)
        before = deepcopy_model(model)  # running a model may change it
        with stopwatch.running():
            _measure(before, candidates, arguments, stopwatch, verbose)
            if any(found.verdict.converts for found in candidates):
                after = _install(deepcopy_model(model), candidates)
                passes = {
                    name: model_passes(each, arguments, training)
                    for name, each in {"before": before, "after": after}.items()
                }
                taken = stopwatch.time(passes)
                times = {which: BeforeAfter.of(taken, which) for which in passes["after"]}
    report = ConversionReport(
        layers=tuple(found.record(limit) for found in candidates),
        times=times,
        training=training,
        unblocked=tuple(found.name for found in candidates if found.lacks_blocks),
        machine=machine.environment_info(),
    )
    return Conversion(_install(model if inplace else deepcopy_model(model), candidates), report)


def _decide(
    found: Candidate, example_input: Any, layers: Any, max_density: float | None, unpruned: bool
) -> Verdict:
    """Return the verdict on a layer; ``UNREACHED`` is final unless the layer is measured."""
    if found.sparse is None:
        return Verdict.OBSTACLE
    if layers is not None:
        return Verdict.NAMED if found.named else Verdict.NOT_NAMED
    density, values = found.sparse.pattern.density, found.sparse.values
    if density == 1 and not unpruned:
        return Verdict.UNPRUNED
    if example_input is not None:
        return Verdict.UNREACHED
    if max_density is None:
        if values.dtype is torch.bfloat16 and values.device.type == "cpu":
            return Verdict.BFLOAT16
        max_density = MAX_DENSITY
    return Verdict.FEW if density <= max_density else Verdict.MANY


def _measure(
    model: nn.Module,
    candidates: Sequence[Candidate],
    arguments: tuple[Any, ...],
    stopwatch: Stopwatch,
    verbose: bool | None,
) -> None:
    """Measure the named or undecided layers on their inputs in one run."""
    wanted = [x for x in candidates if x.verdict in (Verdict.UNREACHED, Verdict.NAMED)]
    check_on_cpu({found.conv: found.name for found in wanted})
    twins = {model.get_submodule(found.path): found for found in wanted}
    called = capture(model, twins, arguments)
    for twin in progress(called, verbose, desc="layers"):
        found = twins[twin]
        assert found.sparse is not None
        found.times = time_layer(found.name, found.sparse, called[twin], stopwatch)
        if found.verdict is Verdict.UNREACHED:
            found.verdict = found.times.verdict


def _install(model: nn.Module, candidates: Sequence[Candidate]) -> nn.Module:
    """Put copies of the chosen sparse layers into the model.

    Mask the other layers, so that the choice does not affect what the model computes.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    successors: dict[nn.Module, nn.Module] = {}
    for found in candidates:
        conv = modules[found.path]
        if found.verdict.converts:
            assert found.sparse is not None
            successors[conv] = sparse = copy.deepcopy(found.sparse)
            sparse.bias = conv.bias  # the same object, since it may be shared
        elif found.given is not None:
            weight, _ = weight_and_mask(conv, found.given)
            with torch.inference_mode(weight.is_inference()), torch.no_grad():
                weight.masked_fill_(~found.given.to(weight.device), 0)
    return replace(model, successors)
