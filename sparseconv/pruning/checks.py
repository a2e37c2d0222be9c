"""What pruning demands of its arguments, and of its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sparseconv.core.checks import count, integer, number
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.replacement import check_not_compiled, held_outside, owners_of
from sparseconv.nn.restored import check_shapes_are_known, deepcopy_model
from sparseconv.profiling.stopwatch import copied_arguments
from sparseconv.pruning.channels import Channels, Layer, kept_channels
from sparseconv.pruning.criteria import Criterion, evaluating
from sparseconv.pruning.equivalent import has_pairs
from sparseconv.pruning.tracing import PRUNABLE, ignored_modules, output_tensors


def checked_example(example_input: Any) -> tuple[Any, ...]:
    """The model's arguments, as a tuple of copies."""
    arguments = copied_arguments(example_input, "example_input")
    if any(isinstance(x, Tensor) and not x.numel() for x in tree_leaves(arguments)):
        raise ValueError("example_input must hold a series at least, but holds none")
    return arguments


def checked_target(
    criterion: Criterion, ratio: float | None, target_macs: int | None
) -> tuple[float | None, int | None]:
    """One of the two; neither for a criterion with a threshold of its own."""
    if criterion.threshold is not None:
        if ratio is not None or target_macs is not None:
            raise ValueError(
                f"{criterion!r} finds out how many filters go; leave ratio and target_macs out"
            )
        return None, None
    if (ratio is None) == (target_macs is None):
        raise ValueError(
            f"{criterion!r} needs either ratio, a share of the filters, or target_macs; got "
            f"{'neither' if ratio is None else 'both'}"
        )
    if target_macs is not None:
        return None, count("target_macs", target_macs)
    assert ratio is not None
    ratio = number("ratio", ratio)
    if not 0 <= ratio < 1:
        raise ValueError(
            f"ratio must lie in [0, 1), since every layer keeps a filter, but got {ratio}"
        )
    return ratio, None


def checked_names(ignore: Any) -> list[str]:
    """Names of modules as a list, one alone as well."""
    names = [ignore] if isinstance(ignore, str) else ignore
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"ignore must be names of modules, but got {ignore!r}")
    return list(names)


def checked_numbers(filters: Any) -> dict[str, set[int]]:
    """The numbers of the filters of each layer, given as ints or as arrays of them."""
    if not isinstance(filters, Mapping):
        raise TypeError(
            "filters must map names of layers to the numbers of the filters that stay, but got "
            f"{filters!r}"
        )
    found = {}
    for name, given in filters.items():
        expectation = (
            f"filters of {name!r} must be a list of ints, the numbers of those that stay (of a "
            "mask: mask.nonzero()[:, 0])"
        )
        numbers = given.tolist() if hasattr(given, "tolist") else given
        if not isinstance(numbers, Iterable):
            raise TypeError(f"{expectation}, but got {given!r}")
        found[name] = {integer(expectation, number) for number in numbers}
    return found


def check_supported(model: nn.Module, ignore: Iterable[str]) -> None:
    """Refuse what surgery could not change without breaking it.

    Raises:
        ValueError: what, by its name, and what to do.
    """
    modules = dict(model.named_modules())
    check_not_compiled(model, "prune")
    if has_pairs(model):
        raise ValueError("the model holds compressors; sparseconv.pruning.merge(model) comes first")
    if scripted := [n for n, m in modules.items() if isinstance(m, torch.jit.ScriptModule)]:
        raise ValueError(f"{scripted[0] or 'it'!r} is a ScriptModule; prune before torch.jit")
    every = dict(model.named_modules(remove_duplicate=False))  # a shared one by each of its names
    if unknown := [name for name in ignore if name not in every]:
        raise ValueError(
            f"ignore names {unknown[0]!r}, but the model has no such module; model.named_modules() "
            "lists them"
        )
    check_shapes_are_known(model)
    for _, where in held_outside(model):
        raise ValueError(
            f"a module stands in {where}, where torch does not see it; use nn.ModuleList"
        )
    ignored = ignored_modules(model, ignore)
    for name, module in modules.items():
        if isinstance(module, PRUNABLE) and module not in ignored:
            computed = [x for x in ("weight", "values", "bias") if x not in module._parameters]
            if computed := [x for x in computed if hasattr(module, x)]:
                raise ValueError(
                    f"{computed[0]!r} of {name!r} is computed from other parameters; undo that "
                    "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations), or name "
                    "the layer in ignore"
                )
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            raise ValueError(
                f"expected parameters that are real numbers, but {name!r} is of {parameter.dtype} "
                f"on {parameter.device}"
            )
    for owners in owners_of(model).values():
        if len(owners) > 1:
            raise ValueError(
                f"{owners[0]!r} and {owners[1]!r} share a parameter; only a layer that is used "
                "twice as a whole can be pruned"
            )


def check_scores(criterion: Criterion, scores: Any, n_units: int) -> None:
    """Refuse what is not a finite score for each unit."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        found = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"{criterion!r} must give a tensor of floats as scores, but gave {found}")
    if scores.shape != (n_units,):
        raise ValueError(
            f"{criterion!r} must give a score for each of {n_units} units (channels.n_units), but "
            f"gave {tuple(scores.shape)}"
        )
    if not scores.isfinite().all():
        raise ValueError(f"{criterion!r} gave scores that are not finite; check the weights")


def check_removal(
    real: tuple[nn.Module, nn.Module],
    noisy: tuple[nn.Module, nn.Module],
    arguments: tuple[Any, ...],
    channels: Channels,
    kept: Tensor,
) -> None:
    """Compare a model in which units are masked with the one from which they were removed.

    Args:
        real: the masked one and the pruned one.
        noisy: both again, made of ``with_noise(model)``.
        arguments: the example.
        channels, kept: what was removed.

    Raises:
        ValueError: more than rounding differs, so wrong channels went.
    """
    masked, pruned = real
    _check_same(partial(_outputs, pruned, arguments), _outputs(masked, arguments))
    # Zeros, in the example or in the weights that follow, do not tell channels apart; noise does,
    # where the layers receive it: what is returned may be saturated.
    noise = _noise_like(arguments)
    for (whole, small), probe in ((noisy, noise), (noisy, arguments), (real, noise)):
        expected = []
        with suppress(Exception):  # a model need not take noise
            expected = _received(whole, probe, channels, kept)
        if any(x.isfinite().any() for x in expected):
            _check_same(partial(_received, small, probe, channels), expected)
            return


@torch.no_grad()
def with_noise(model: nn.Module) -> nn.Module:
    """A copy with noise in the place of its parameters and of BatchNorm's statistics.

    Weights have both signs, and a size by which signals neither grow nor fade. All else is about 1:
    variances must be positive, and positive biases keep ReLUs awake.
    """
    rng = torch.Generator().manual_seed(0)
    noisy = deepcopy_model(model)
    for module in noisy.modules():
        for name, tensor in module.named_parameters(recurse=False):
            filters = len(tensor) if tensor.dim() > 1 else 0
            if isinstance(module, SparseConv1d) and name == "values":
                filters = module.out_channels
            noise = torch.rand(tensor.shape, generator=rng) + 0.5
            if filters:
                noise *= torch.randint(0, 2, tensor.shape, generator=rng) * 2 - 1
                noise *= (2 * filters / max(1, tensor.numel())) ** 0.5  # as Kaiming's
            tensor.copy_(noise)
        if isinstance(module, nn.BatchNorm1d):
            for statistic in module.buffers(recurse=False):
                if statistic.is_floating_point():
                    statistic.copy_(torch.rand(statistic.shape, generator=rng) + 0.5)
    return noisy


def _noise_like(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    rng = torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return torch.randn(x.shape, generator=rng).to(x)

    found: tuple[Any, ...] = tree_map_only(Tensor, noise, arguments)
    return found


def _outputs(model: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    """The tensors among a model's outputs in eval mode."""
    with evaluating(model), torch.no_grad():
        # Of copies: a first layer that works in place changes what the next model is given.
        return [x.clone() for x in output_tensors(model(*copied_arguments(arguments)))]


def _received(
    model: nn.Module, arguments: tuple[Any, ...], channels: Channels, kept: Tensor | None = None
) -> list[Tensor]:
    """What each layer is given, of a whole model the kept units alone, and the outputs."""
    found: list[Tensor] = []

    def see(layer: Layer, _: nn.Module, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs["input"]
        if kept is None:
            found.append(x.clone())
        else:
            columns = kept_channels(layer.inputs, kept).nonzero()[:, 0]
            found.append(x.index_select(layer.channel_dim, columns.to(x.device)))

    with ExitStack() as stack:
        for name, layer in channels.layers.items():
            module, hook = model.get_submodule(name), partial(see, layer)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        outputs = _outputs(model, arguments)
    return found + outputs


def _check_same(compute: Callable[[], list[Tensor]], expected: list[Tensor]) -> None:
    advice = (
        "the code of the model relies on a number of channels, or moves them in a way that cannot "
        "be followed; name the module where it does in ignore"
    )
    try:
        found = compute()
    except Exception as error:
        raise ValueError(
            f"the pruned model does not run ({type(error).__name__}: {error}): {advice}"
        ) from error
    if len(found) != len(expected) or not all(map(_close, found, expected)):
        raise ValueError(f"the pruned model computes something else: {advice}")


def _close(got: Tensor, wanted: Tensor) -> bool:
    if got.shape != wanted.shape:
        return False
    if not wanted.is_floating_point():
        return got.equal(wanted)
    loose = torch.finfo(wanted.dtype).eps ** 0.5
    scale = float(wanted.nan_to_num(0, 0, 0).abs().max()) if wanted.numel() else 0
    return torch.allclose(got, wanted, rtol=loose, atol=loose * scale, equal_nan=True)
