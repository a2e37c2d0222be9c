"""``convert``: sparse layers where they are faster; ``to_dense``: the way back."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.conversion.candidates import (
    Candidate,
    checked_masks,
    convolutions,
    find_candidates,
    selected_layers,
    set_inactive_to_zero,
)
from sparseconv.conversion.result import Conversion, ConversionReport
from sparseconv.core.checks import flag, number
from sparseconv.measure import machine
from sparseconv.measure.records import BeforeAfter, Verdict
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.modules import deepcopy_model, replace
from sparseconv.profiling.stopwatch import (
    Stopwatch,
    capture,
    check_on_cpu,
    copied_arguments,
    model_passes,
    time_layer,
)

# With so few active weights every row of benchmarks/results/bench.json but some in bfloat16 was
# faster sparse than as nn.Conv1d. The tiniest layers are not among them.
MAX_DENSITY = 0.2


@torch.inference_mode(False)  # what is made in that mode would not train later
def convert(
    model: nn.Module,
    *,
    example_input: Tensor | tuple[Any, ...] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    layers: Iterable[str] | None = None,
    max_density: float | None = None,
    unpruned: bool = False,
    backward: bool = True,
    inplace: bool = False,
    rounds: int = 30,
    least_seconds: float = 2e-3,
    seed: int = 0,
) -> Conversion:
    """Replace a pruned model's ``nn.Conv1d`` layers by ``SparseConv1d`` where that is faster.

    Inactive are the weights that a mask leaves out: that of ``masks``, of ``torch.nn.utils.prune``
    or of ``torch.ao.pruning``; without a mask those that are zero. What decides is

    - with ``example_input``, a measurement: the model runs once to see what its layers are given,
      then each layer is timed sparse and dense in turns, as ``profile`` does. It becomes sparse
      if that is faster with 95 % confidence. Threads, mode and autocast are those of the caller.
      Dense is a plain ``nn.Conv1d``, without the cost of masks or pruning hooks.
    - with ``layers``, you: exactly these become sparse; they are measured too if there is an
      ``example_input``.
    - with neither, the density: every layer with at most ``max_density`` active weights becomes
      sparse. No time is measured, so that may be a loss, mostly in tiny layers. On the CPU
      bfloat16 layers stay dense unless ``max_density`` is given.

    Left dense, with the reason in the report: subclasses of ``nn.Conv1d``, layers with a weight
    that is shared or computed (weight_norm), without inactive weights unless ``unpruned``, or that
    the input does not reach. What ``masks`` leaves out of them is set to 0, too, but nothing keeps
    it there in training. Left dense are also layers with hooks or added attributes, which would be
    lost, and with a pruned bias. Everything else about a layer stays: its name and places, bias,
    mode, ``requires_grad``, dtype, device. Outputs differ from those of the masked model by
    rounding. Code that uses a layer's ``weight`` raises afterwards; it has ``values``. Hooks on the
    weight's gradient are lost, and the report says so.

    Convert first, then build the optimizer: ``Adam(converted.parameters())``. One that was built
    before holds the dense weights, and its moments of these are not carried over.

    Args:
        model: any module, before ``torch.compile`` or a distributed wrapper.
        example_input: what the model takes; a tuple is several arguments. On the CPU.
        masks: layer name (or that of its parameter, ``"conv.weight"``) -> ``(C_out, C_in // groups,
            K)`` of bools, or zeros and ones. Weights outside count as zero.
        layers: names of the layers to convert.
        max_density: 0.2 if nothing decides; with ``example_input`` or ``layers`` not allowed.
        unpruned: measure layers without inactive weights too; with ``example_input`` only. Where
            channels are few and kernels long, these kernels are often faster for them as well. Such
            a layer has a full pattern, which ``DSTScheduler`` leaves as it is.
        backward: measure what a training step computes; False measures inference.
        inplace: change ``model`` itself; what is replaced must not be used any more.
        rounds, least_seconds, seed: of the measurement, as in ``profile``. Like ``backward``, they
            say nothing where there is no ``example_input``.

    Returns:
        ``(model, report)``: a converted copy, and a table to print with each layer's density,
        times and verdict. The input model is left as it was, unless ``inplace``.

    Raises:
        TypeError: ``model`` is no module, or ``layers`` is a str.
        ValueError: no ``nn.Conv1d``, unknown names, a mask that does not fit or whose layer cannot
            be converted, options that exclude each other; the model fails on the input.
        NotImplementedError: a measurement on another device than the CPU.

    Example:
        >>> import torch, torch.nn.utils.prune as prune, sparseconv as sc
        >>> model = nn.Sequential(nn.Conv1d(8, 16, 9), nn.ReLU(), nn.Conv1d(16, 4, 1))
        >>> _ = prune.l1_unstructured(model[0], "weight", amount=0.9)
        >>> sparse, report = sc.convert(model)  # with example_input=x it measures
        >>> sparse[0]
        SparseConv1d(8, 16, kernel_size=(9,), stride=(1,), nnz=115, density=9.98 %)
        >>> print(report.layers[1].verdict)
        no weight is zero or masked
        >>> torch.equal(sc.to_dense(sparse)[0].weight, model[0].weight)
        True
    """
    convs = convolutions(model)
    selected = None if layers is None else selected_layers(convs, layers)
    given = checked_masks(convs, {} if masks is None else masks)
    if max_density is not None:
        if example_input is not None or selected is not None:
            raise ValueError(
                "max_density decides where nothing else does; leave it out, or example_input and "
                "layers"
            )
        max_density = number("max_density", max_density)
        if not 0 <= max_density <= 1:
            raise ValueError(f"max_density must lie in [0, 1], but got {max_density}")
    unpruned, inplace = flag("unpruned", unpruned), flag("inplace", inplace)
    if unpruned and (example_input is None or selected is not None):
        raise ValueError(
            "unpruned=True lets a measurement decide; pass example_input, and leave layers out"
        )
    stopwatch = Stopwatch(backward, rounds, least_seconds, seed)
    if inplace and isinstance(model, nn.Conv1d):
        raise ValueError(
            "a model that is itself the nn.Conv1d cannot be replaced in place; use "
            "SparseConv1d.from_dense(model), or convert it without inplace"
        )
    candidates = find_candidates(model, given, selected or ())
    measured = example_input is not None
    if measured:
        arguments = copied_arguments(example_input, "example_input")
        wanted = [c for c in candidates if c.wanted(selected, unpruned)]
        _measure(model, wanted, arguments, stopwatch)
    for candidate in candidates:
        if candidate.sparse is not None:
            candidate.verdict = _decide(
                candidate, candidate.sparse, selected, measured, unpruned, max_density
            )
            candidate.notes = _notes(candidate, max_density)
    times = {}
    if measured and any(candidate.verdict.converts for candidate in candidates):
        # Copies are timed: running a model changes it, and one that fails must stay as it is.
        times = _measure_models(
            deepcopy_model(model), _install(deepcopy_model(model), candidates), arguments, stopwatch
        )
    report = ConversionReport(
        layers=tuple(candidate.record() for candidate in candidates),
        times=times,
        backward=backward,
        machine=machine.environment_info(),
    )
    return Conversion(_install(model if inplace else deepcopy_model(model), candidates), report)


def _measure(
    model: nn.Module,
    candidates: list[Candidate],
    arguments: tuple[Any, ...],
    stopwatch: Stopwatch,
) -> None:
    check_on_cpu({candidate.conv: candidate.name for candidate in candidates})
    copied = deepcopy_model(model)
    twins = {copied.get_submodule(candidate.path): candidate for candidate in candidates}
    with stopwatch.running():
        calls = capture(copied, twins, arguments)
        for twin, candidate in twins.items():
            if twin in calls:
                assert candidate.sparse is not None
                candidate.times, _ = time_layer(
                    candidate.name, candidate.sparse, calls[twin], stopwatch
                )


def _decide(
    candidate: Candidate,
    sparse: SparseConv1d,
    selected: Collection[nn.Module] | None,
    measured: bool,
    unpruned: bool,
    max_density: float | None,
) -> Verdict:
    density = sparse.pattern.density
    if selected is not None:
        return Verdict.NAMED if candidate.conv in selected else Verdict.NOT_NAMED
    if density == 1 and not unpruned:
        return Verdict.UNPRUNED
    if measured:
        if candidate.times is None:
            return Verdict.UNREACHED
        found = candidate.times.verdict
        return Verdict.FASTER if found is Verdict.KEEP else found
    bfloat16_on_cpu = sparse.values.dtype is torch.bfloat16 and sparse.values.device.type == "cpu"
    if max_density is None and bfloat16_on_cpu:
        return Verdict.BFLOAT16
    limit = MAX_DENSITY if max_density is None else max_density
    return Verdict.FEW if density <= limit else Verdict.MANY


def _notes(candidate: Candidate, max_density: float | None) -> tuple[str, ...]:
    """Say what the verdict does not: the limit of density, and what is not carried over."""
    assert candidate.sparse is not None
    verdict, notes = candidate.verdict, []
    if verdict in (Verdict.FEW, Verdict.MANY):
        limit = MAX_DENSITY if max_density is None else max_density
        notes.append(f"the limit is {100 * limit:.3g} %")
    if verdict.converts and candidate.hooked:
        notes.append("the hooks on its weight's gradient are lost")
    masked = candidate.given is not None and candidate.sparse.pattern.density < 1
    if masked and not verdict.converts:
        notes.append("the weights outside its mask are set to 0")
    return tuple(notes)


def _install(model: nn.Module, candidates: Sequence[Candidate]) -> nn.Module:
    """Put copies of the chosen sparse layers into the model, or into a copy of it.

    The others are masked, so that what the model computes does not depend on what was chosen.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    successors: dict[nn.Module, nn.Module] = {}
    for candidate in candidates:
        conv = modules[candidate.path]
        assert isinstance(conv, nn.Conv1d)
        if not candidate.verdict.converts:
            if candidate.given is not None:
                set_inactive_to_zero(conv, candidate.given)
            continue
        sparse = copy.deepcopy(candidate.sparse)
        assert sparse is not None
        sparse._parameters["bias"] = conv._parameters["bias"]  # the same object, if it is shared
        successors[conv] = sparse
    return replace(model, successors)


def _measure_models(
    before: nn.Module,
    after: nn.Module,
    arguments: tuple[Any, ...],
    stopwatch: Stopwatch,
) -> dict[str, BeforeAfter]:
    """Time the whole model before and after the conversion."""
    with stopwatch.running():
        try:
            passes = {
                when: model_passes(model, arguments, stopwatch.backward)
                for when, model in (("before", before), ("after", after))
            }
        except AttributeError as error:
            raise ValueError(
                f"the converted model fails on example_input: {error}; if the model's own code "
                "uses a layer's weight, name the other layers in layers=[...], without unpruned"
            ) from error
        times = stopwatch.time(passes)
    return {which: BeforeAfter.of(times, which) for which in passes["after"]}
