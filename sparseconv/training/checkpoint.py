"""Checkpoint files: written whole or not at all, refused when they are not what they should be."""

from __future__ import annotations

import copy
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.core.files import ctrl_c_waits, replacing

FORMAT = "sparseconv checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """A file that is not a checkpoint, or a checkpoint of something else."""


def save(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write ``content``; a process killed meanwhile leaves the old file or the new one.

    An error leaves the old one.

    Args:
        path: the file; its folder exists.
        content: dicts, lists, tensors, numbers and strings only: what
            ``torch.load(weights_only=True)`` reads without running any code.

    Raises:
        TypeError: no dict, or something in it that ``load`` could not read.
        ValueError: a key ``"format"`` or ``"version"``, which ``save`` itself writes.
        OSError, RuntimeError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint.pt"
        >>> save(path, {"epoch": 3})
        >>> load(path)["epoch"]
        3
    """
    if not isinstance(content, dict):
        raise TypeError(f"content must be a dict, but got a {type(content).__name__}")
    header = {"format": FORMAT, "version": VERSION}
    for name, own in header.items():
        if name in content and repr(content[name]) != repr(own):  # what load returned is as good
            raise ValueError(f"content must not have the key {name!r}, which save writes itself")
    # torch's writer, interrupted, raises errors of its own or aborts the process.
    with ctrl_c_waits(), replacing(Path(path)) as file:
        only = "content must hold dicts, lists, tensors, numbers and strings only, but"
        try:
            torch.save(header | content, file)
            file.flush()
            unread = torch.serialization.get_unsafe_globals_in_checkpoint(file.name)
        except (pickle.PickleError, AttributeError) as error:
            raise TypeError(f"{only} {error}; convert it") from error
        if unread:
            names = ", ".join(sorted(unread))
            raise TypeError(f"{only} it holds {names}, which load would refuse; convert it")


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what ``save`` wrote, tensors on the CPU.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: it is truncated, damaged, or not a checkpoint of this library and version.

    Example: see ``save``.
    """
    raw = Path(path).read_bytes()
    try:
        # torch does not compare the checksums that it writes; Python's zipfile does.
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of its part {damaged!r} is wrong")
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(
            f"{path} is not a readable checkpoint: it is truncated, damaged or of another "
            f"program ({error}); use another file, or train without resuming"
        ) from error
    # Types are compared first: a damaged file may hold anything here, a tensor for example.
    kind, version = (content.get(name) if isinstance(content, dict) else None
                     for name in ("format", "version"))  # fmt: skip
    if type(kind) is not str or kind != FORMAT:
        raise CheckpointError(
            f"{path} is a file of torch, but not a checkpoint written by "
            "sparseconv.training.checkpoint.save"
        )
    if type(version) is not int or version != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {version}, but this release reads version {VERSION}; "
            "use the release that wrote it"
        )
    found: dict[str, Any] = content
    return found


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Copy a model's state dict (weights, patterns, buffers): further training leaves it alone."""
    state: dict[str, Any] = copy.deepcopy(model.state_dict())
    return state


def restore(model: nn.Module, state: dict[str, Any]) -> None:
    """Load a model's state dict whole or not at all.

    CheckpointError if it is of another architecture, or its patterns are invalid.
    """
    before = snapshot(model)
    expected, came = _layout(before), _layout(state)
    if expected != came:
        name = min(name for name, _ in expected.items() ^ came.items())
        raise CheckpointError(
            f"the checkpoint is of another architecture: this model has {name!r} "
            f"{expected.get(name, 'not at all')}, the checkpoint {came.get(name, 'not at all')}; "
            "build the model as it was when the checkpoint was written"
        )
    try:
        model.load_state_dict(state)
    except Exception as error:
        model.load_state_dict(before)
        raise CheckpointError(f"the checkpoint does not fit the model: {error}") from error


def restore_adam(optimizer: torch.optim.Adam, state: dict[str, Any]) -> None:
    """Load Adam's state dict if its moments fit the parameters, which the fused step never checks.

    The options of ``optimizer`` are kept; except the learning rate, the state's must be equal.
    Else CheckpointError, and nothing is loaded.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, moments in state["state"].items():
        if index not in range(len(parameters)):
            raise CheckpointError(
                f"the checkpoint has moments of parameter {index!r}, but the optimizer only "
                f"{len(parameters)} parameters"
            )
        moment = torch.empty_like(parameters[index], device="meta")
        fitting = {"step": torch.zeros(()), "exp_avg": moment, "exp_avg_sq": moment}
        expected, came = _layout(fitting), _layout(moments)
        if expected != came or any(moments[k].stride() != fitting[k].stride() for k in fitting):
            raise CheckpointError(
                f"the moments of parameter {index} do not fit it: expected {expected} with "
                f"strides {moment.stride()}, but the checkpoint has {came}"
            )
    own = optimizer.state_dict()["param_groups"]
    for here, there in zip(own, state["param_groups"], strict=True):
        for key in here.keys() - {"lr", "capturable"}:  # the latter goes by the device
            found = there.get(key, here[key])  # other releases of torch know other options
            if found != here[key]:
                raise CheckpointError(
                    f"the checkpoint is of an optimizer with {key} {found!r}, but this one has "
                    f"{here[key]!r}; build the optimizer as it was"
                )
    optimizer.load_state_dict({**state, "param_groups": own})


def _layout(state: dict[str, Any]) -> dict[str, str]:
    return {
        name: f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else "no tensor"
        for name, tensor in state.items()
    }
