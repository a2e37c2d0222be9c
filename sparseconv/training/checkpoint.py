"""Checkpoint files: written atomically, and checked when read; digests of data."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparseconv.core.files import ctrl_c_waits, replacing

FORMAT = "sparseconv checkpoint, version 1"


class CheckpointError(ValueError):
    """The file is not a valid checkpoint, or belongs to a different run."""


def save(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write ``content`` atomically.

    A killed process leaves either the old or the new file; an error leaves the old one.

    Args:
        path: the file, in an existing folder.
        content: what ``torch.load(weights_only=True)`` allows: dicts, lists, tensors, numbers and
            strings.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint.pt"
        >>> save(path, {"epoch": 3})
        >>> load(path)["epoch"]
        3
    """
    # torch's writer, interrupted, raises its own errors or aborts the process.
    with ctrl_c_waits(), replacing(Path(path)) as file:
        torch.save(content | {"format": FORMAT}, file)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what ``save`` wrote, with tensors on the CPU.

    Raises:
        CheckpointError: the file is truncated, damaged, or from another program or version.
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
            f"{path} is not a readable checkpoint: it is truncated, damaged or from another "
            f"program ({error}); use another file, or train without resuming"
        ) from error
    if not isinstance(content, dict) or repr(content.get("format")) != repr(FORMAT):
        raise CheckpointError(
            f"{path} is a torch file, but not a {FORMAT}, which sparseconv.training.train writes"
            "; use another file"
        )
    found: dict[str, Any] = content
    return found


def restore_adam(optimizer: torch.optim.Adam, state: dict[str, Any]) -> None:
    """Load Adam's moments after checking their shapes, which the fused step does not do.

    The options of ``optimizer`` are kept. Raise CheckpointError if a moment has the wrong shape.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    restored = {}
    for index, moments in state["state"].items():
        step = torch.tensor(float(moments["step"]), device="cpu")
        like, restored[index] = parameters[index], {"step": step}
        for name in ("exp_avg", "exp_avg_sq"):
            if moments[name].shape != like.shape:
                raise CheckpointError(
                    f"{name} of parameter {index} must have the parameter's shape "
                    f"{tuple(like.shape)}, but has {tuple(moments[name].shape)}"
                )
            # Copied, since the fused step reads a moment's memory as the parameter's lies.
            restored[index][name] = torch.empty_like(like).copy_(moments[name])
    own = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": restored, "param_groups": own})


def digest(*tensors: Tensor) -> str:
    """Return the SHA-256 of tensors' dtypes, shapes and elements."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        # contiguous() keeps the stride of a dimension of one entry, which view() refuses.
        plain = tensor.cpu().clone(memory_format=torch.contiguous_format)
        sha.update(plain.view(torch.uint8).numpy().data)
    return sha.hexdigest()
