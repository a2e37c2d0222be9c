"""``export_c``: a folder with a trained network as C."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparseconv.core.files import write_whole
from sparseconv.edge.generate import write_c
from sparseconv.edge.layers import Array, scores_and_bound
from sparseconv.edge.lowering import lower
from sparseconv.edge.quantize import quantize
from sparseconv.edge.storage import numbers_text

WEIGHTS = ("float32", "int8")
KNOWN = 3  # series of the self-test


@torch.no_grad()
def export_c(
    model: nn.Module,
    example_input: Any,
    folder: str | os.PathLike[str],
    *,
    name: str = "dsn",
    weights: str = "float32",
    calibration: Any = None,
) -> Path:
    """Write a trained network as C99 that allocates nothing and needs no library.

    The program has ``NAME_predict`` and ``NAME_scores`` for one series of the length of
    ``example_input``; all its state is one static arena. Weights that are not active are neither
    stored nor computed. float32 differs from PyTorch by rounding; int8 has the same bits on every
    processor.

    Args:
        model: a ``DSN``, an ``nn.Sequential``, or what ``convert`` or ``optimize_for_inference``
            made of one, in eval mode; left as it is. It maps ``(N, channels, length)`` to ``(N,
            n_classes)``.
        example_input: series ``(N, channels, length)``; the self-test knows the first three.
        folder: new or empty; it receives ``NAME.c``, ``NAME.h``, ``NAME_test.c`` and ``README.md``,
            or nothing.
        name: begins every name that the program shows; a C identifier.
        weights: ``"float32"``, or ``"int8"`` for weights and activations.
        calibration: training series ``(N, channels, length)`` from which int8 takes its scales.

    Returns:
        The folder.

    Raises:
        NotImplementedError: a layer that has no counterpart; named, before anything is written.
        ValueError: a model in training mode, weights that are not finite, series that do not fit,
            int8 without calibration, a name that is no C identifier, a folder that holds files or
            cannot be written.
        TypeError: a model that is no module, series that are no arrays of numbers.

    Example:
        >>> import sparseconv as sc, tempfile
        >>> model = nn.Sequential(
        ...     sc.SparseConv1d(1, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        ...     nn.Linear(4, 2),
        ... ).eval()
        >>> made = export_c(model, torch.randn(3, 1, 30), tempfile.mkdtemp(), name="toy")
        >>> sorted(file.name for file in made.iterdir())
        ['README.md', 'toy.c', 'toy.h', 'toy_test.c']

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018 (int8).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, but got {type(model).__name__}")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise ValueError(
            f"name must be a C identifier that begins with a letter, but got {name!r}; 'dsn' is one"
        )
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {WEIGHTS}, but got {weights!r}")
    example = _series("example_input", example_input)
    folder = Path(folder)
    _check_free(folder)
    network = lower(model, *example.shape[1:])
    scores = _scores_of(model, example[:KNOWN])
    if scores.shape != (len(example[:KNOWN]), network.classes):
        raise ValueError(f"expected a model that gives (n_cases, n_classes), got {scores.shape}")
    integers, agreement = None, None
    bounds = np.zeros_like(scores)
    if weights == "int8":
        if calibration is None:
            raise ValueError(
                "int8 takes its scales from series of the training set, but calibration is None; "
                "pass calibration=X_train"
            )
        known = _series("calibration", calibration)
        if known.shape[1:] != example.shape[1:]:
            raise ValueError(
                f"calibration must have the channels and length of example_input, "
                f"{example.shape[1:]}, but got {known.shape[1:]}"
            )
        integers = quantize(network, known)
        same = integers.run(known).argmax(1) == _scores_of(model, known).argmax(1)
        agreement = len(known), int(same.sum())
        scores = integers.scores(example[:KNOWN])
    else:
        # PyTorch rounds as well, so both may be as far from the exact scores.
        bounds = 2 * scores_and_bound(network, example[:KNOWN])[1]
    cases = _cases(example[:KNOWN], scores, bounds.astype(np.float32))
    files = write_c(network, integers, name, cases, agreement)
    _write_folder(folder, files)
    return folder


def _cases(series: Array, scores: Array, bounds: Array) -> list[dict[str, Any]]:
    return [
        {
            "series": numbers_text(x), "scores": numbers_text(y.astype(np.float32)),
            "bounds": numbers_text(bound), "label": int(y.argmax()),
        }
        for x, y, bound in zip(series, scores, bounds, strict=True)
    ]  # fmt: skip


def _scores_of(model: nn.Module, X: Array) -> Array:
    parameter = next(model.parameters(), torch.empty(0))
    parts = [model(torch.from_numpy(X[at : at + 64]).to(parameter)) for at in range(0, len(X), 64)]
    scores: Array = torch.cat(parts).float().cpu().numpy()
    return scores


def _series(name: str, given: Any) -> Array:
    """float32 ``(N, channels, length)``, finite."""
    try:
        tensor = torch.as_tensor(given).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be an array of numbers, but {error}") from error
    if tensor.dim() != 3 or 0 in tensor.shape or tensor.is_complex():
        raise ValueError(
            f"{name} must have the shape (n_cases, channels, length), none of them 0, but got "
            f"{tuple(tensor.shape)}; one series of one channel is x[None, None]"
        )
    array: Array = tensor.to(torch.float32).contiguous().numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, but holds NaN or infinity")
    return array


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the folder {folder} is a file; choose another")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"expected a new or empty folder, but {folder} holds files; choose another"
        )


def _write_folder(folder: Path, files: dict[str, str]) -> None:
    """All files or none: they are written beside, and renamed as a whole."""
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        for name, text in files.items():
            write_whole(partial / name, text)
        partial.chmod(0o777 & ~_umask())
        os.replace(partial, folder)  # an empty folder gives way
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({error.strerror or error}); choose another folder"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
