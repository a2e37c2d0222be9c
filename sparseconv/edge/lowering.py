"""Translate a traced model into steps of the C program."""

from __future__ import annotations

import operator
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves

from sparseconv.edge.builder import Builder, Call, Value, ordered
from sparseconv.edge.layers import AnyStep, Network
from sparseconv.edge.operations import RULES, STAY, arithmetic, joined, moved, stays
from sparseconv.running import one_tensor


@torch.no_grad()
def lower(model: nn.Module, channels: int, length: int) -> Network:
    """Translate a model in eval mode for series ``(channels, length)``."""
    zeros = torch.zeros(1, channels, length, dtype=torch.float32)
    with torch.autocast("cpu", enabled=False), warnings.catch_warnings():
        one_tensor(model(zeros))
        try:
            warnings.simplefilter("ignore")  # of a pruned weight, which is an attribute
            program = torch.export.export(model, (zeros,), strict=False)
        except Exception as error:  # torch.export raises errors of many types
            raise NotImplementedError(
                "the model cannot be exported to C, because torch.export cannot trace it; "
                f"{type(error).__name__}: {error}"
            ) from error
    build = Builder([(length, channels)])
    with np.errstate(all="ignore"):  # the scores are checked
        scores = _walk(program, build, Value(0, ordered((1, channels, length))))
    if scores.places.shape == (1,):
        scores = Value(scores.of, scores.places[None])
    if scores.places.dim() != 2:
        raise ValueError(
            "expected a model that returns scores (n_cases, n_classes), but this one returns "
            f"{tuple(scores.places.shape)} for one case; end it with x.mean(-1), nn.Flatten() or, "
            "to keep the first axis, squeeze(-1)"
        )
    steps: list[AnyStep] = []
    needed = {_put_in_order(build, scores)}
    for step in reversed(build.steps):
        if step.output in needed:
            needed.update(step.inputs)
            steps.insert(0, step)
    last = [step.kind for step in build.steps if step.output == scores.of]
    threshold = 0.5 if last in (["sigmoid"], ["hardsigmoid"]) else 0.0
    return Network((channels, length), steps, build.shapes, build.ending, threshold)


def _put_in_order(build: Builder, scores: Value) -> int:
    """Make the last layer write its results in the order of PyTorch's scores; return its tensor."""
    want, last = scores.places[0].numpy(), build.writer(scores)
    if last and build.fills(scores):
        for whole in (False, True):
            other = replace(last, rows_whole=whole, stride=last.positions if whole else last.rows)
            moved = other.places.ravel()[last.places.ravel().argsort()]
            if (moved[want] == np.arange(len(want))).all():
                build.change(last, **vars(other))
                return scores.of
    return build.copy(scores).of


def _walk(program: torch.export.ExportedProgram, build: Builder, series: Value) -> Value:
    """Follow the series through the traced model to the scores."""
    if any(spec.kind != OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs):
        raise NotImplementedError(
            "the model cannot be exported to C, because it changes its buffers when it is called; "
            "call model.eval(), or remove that code"
        )
    held: dict[str, Any] = {}
    constants = {**program.constants, **program.state_dict}
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            held[spec.arg.name] = series
        else:
            known = constants[str(spec.target)]
            held[spec.arg.name] = known.double() if known.is_floating_point() else known
    found: Any = None
    for node in program.graph.nodes:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: held[n.name])
        if node.op == "output":
            found = next(x for x in args[0] if x is not None)
        elif node.op == "call_function":
            stack = [*(node.meta.get("nn_module_stack") or {"": ("", ".model")}).values()]
            schema = getattr(node.target, "_schema", None)  # torch.cond has none
            name = (schema.name if schema else node.target.__name__).rpartition("::")[2].rstrip("_")
            module, kind = stack[-1][0], str(stack[-1][1]).rpartition(".")[2]
            which = f"{f'module {module!r}' if module else 'the model'} ({kind})"
            try:
                y = _result(build, node, name, args, kwargs)
            except NotImplementedError as error:
                raise NotImplementedError(
                    f"{which} cannot be exported to C: {name!r} {error}; the supported operations "
                    f"are {', '.join(sorted({*RULES} - {*STAY}))}"
                ) from error
            except ValueError as error:
                raise ValueError(f"{which}: {error}") from error
            if len(node.users) > 1:
                parts = tree_leaves(y, is_leaf=lambda x: isinstance(x, Value))
                build.shared.update(part.of for part in parts if isinstance(part, Value))
            held[node.name] = y
    if not isinstance(found, Value):
        raise ValueError(
            "expected a model that returns scores (n_cases, n_classes), but it returns a value "
            "that does not depend on the series"
        )
    return found


def _result(build: Builder, node: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Compute constants; add steps for values that depend on the series."""
    leaves = tree_leaves((args, kwargs), is_leaf=lambda x: isinstance(x, Value))
    values = [leaf for leaf in leaves if isinstance(leaf, Value)]
    target = node.target
    if target is operator.getitem:
        return args[0][args[1]]
    if name.startswith("_assert"):  # of types, which are others here
        return None
    if not values:
        if name in STAY and isinstance(args[0], Tensor):  # float32 would round it
            return args[0].double() if node.meta["val"].is_floating_point() else target(*args)
        y = target(*args, **kwargs)
        return y.double() if isinstance(y, Tensor) and y.is_floating_point() else y
    if build.ending and RULES.get(name) not in (moved, stays):
        raise NotImplementedError(f"comes after a {build.ending}, which must come last")
    if name not in RULES:
        raise NotImplementedError("has no counterpart in C")
    given = {argument.name: argument.default_value for argument in target._schema.arguments}
    given |= dict(zip(given, args, strict=False)) | kwargs
    if given.get("train"):
        raise NotImplementedError("is random; call model.eval(), or F.dropout with training=False")
    if len(values) > 1 and RULES[name] not in (joined, arithmetic):
        raise NotImplementedError("combines several results of the model")

    def again(tensor: Tensor) -> Any:
        given = tensor.clone()  # into which an operation may write
        return target(*(given if arg is values[0] else arg for arg in args), **kwargs)

    return RULES[name](build, values[0], Call(name, values, given, again))
