"""Write a trained network to a folder as C code: ``export_c``."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from sparseconv.core.arrays import as_series, check_axes
from sparseconv.core.files import write_folder
from sparseconv.core.modules import check_module, deepcopy_model
from sparseconv.edge.generate import write_c
from sparseconv.edge.layers import Array, scores_and_bound
from sparseconv.edge.lowering import lower
from sparseconv.edge.quantize import quantize
from sparseconv.running import batch_sizes, one_tensor

Weights = Literal["float32", "int8"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
KNOWN = 3  # series of the self-test
CALIBRATION = 500  # series, at most
AGREEMENT = 0.9  # of int8's classes with PyTorch's, below which something is wrong


@torch.no_grad()
@np.errstate(under="ignore")
def export_c(
    model: nn.Module,
    example_input: Any,
    folder: str | os.PathLike[str],
    *,
    name: str = "dsn",
    weights: Weights = "float32",
    calibration: Any = None,
    classes: Iterable[Any] | None = None,
) -> Path:
    """Write a trained network as C99 code that allocates no memory.

    ``NAME_predict`` and ``NAME_scores`` take a single series, with the shape of those in
    ``example_input``. All state is stored in one static arena. Inactive weights are neither stored
    nor multiplied. float32 results differ from PyTorch's only by rounding; int8 results are
    bit-identical on all processors.

    Args:
        model: a module in eval mode that ``torch.export`` can trace, built from the operations in
            docs/edge.md; it is left unchanged. It maps ``(N, channels, length)`` to ``(N,
            n_classes)``, or to one score per series, which means class 1 if it is above 0 (after a
            sigmoid: above 0.5).
        example_input: series ``(N, channels, length)``, or ``(N, length)`` for a single channel.
            The self-test contains the first three.
        folder: a new or empty folder for ``NAME.c``, ``NAME.h``, ``NAME_test.c`` and ``README.md``.
            After an error, it is unchanged.
        name: a C identifier that begins with a letter, the prefix of all public names.
        weights: ``"float32"``, or ``"int8"`` for weights and activations.
        calibration: for int8, training series ``(N, channels, length)`` that determine the scales.
            If there are more than 500, an evenly spaced subset of 500 is used.
        classes: class names for the comments, in the order of the scores (for one score: 0, 1).

    Raises:
        NotImplementedError: an operation without a counterpart in C; the message names it.
        TypeError, ValueError: a model that does not return one tensor, or one that does not treat
            all series alike; weights, scores or series that are not finite; int8 without
            calibration, or float32 with it; an unfit name or folder.
        RuntimeError: series that the model rejects.

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
    check_module(model)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise ValueError(
            f"name must be a C identifier that begins with a letter, such as 'dsn', but got "
            f"{name!r}"
        )
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {WEIGHTS}, but got {weights!r}")
    if (weights == "int8") != (calibration is not None):
        raise ValueError(
            "int8 needs training series for its scales; pass calibration=X_train"
            if calibration is None
            else "calibration requires weights='int8', but got weights='float32'; omit calibration"
        )
    example = as_series("export_c", "example_input", example_input)
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(
            f"expected a new or empty folder, but {folder} is a file or contains files; choose "
            "another"
        )
    plain = deepcopy_model(model).float().cpu()  # what the program is compared with
    try:
        network = lower(plain, *example.shape[1:])
    except Exception as error:  # the model's code may raise anything
        if model.training:
            error.add_note("the model is in training mode; call model.eval(), before torch.export")
        raise
    scores = _scores_of(plain, example[:KNOWN])
    if not np.isfinite(scores).all():
        raise ValueError(
            "expected a model with finite scores, but its scores for example_input are infinite or "
            "NaN in float32; scale the series, or train the model again if its weights are not "
            "finite"
        )
    named = [] if classes is None else [str(name) for name in classes]
    if classes is not None and len(named) != (wanted := max(2, network.classes)):
        raise ValueError(f"classes must contain {wanted} names, but got {len(named)}")
    X, agreement = example[:KNOWN], None
    labels, (exact, bound) = network.labels(scores), scores_and_bound(network, X)
    largest = np.abs(scores).max()
    try:
        precise = _scores_of(deepcopy_model(plain).double(), X.astype(np.float64))
    except RuntimeError:  # it makes float32 tensors
        precise = scores
    if (np.abs(precise - exact) > np.minimum(bound, largest * 2.0**-6)).any():
        raise ValueError(
            "expected a model that runs the same operations for every series, but its scores for "
            "example_input differ from those of the operations that torch.export recorded; call "
            "model.eval(), and remove randomness, and operations that depend on the values of the "
            "series or on other series in the batch"
        )
    # PyTorch rounds as well, so both may be as far from the exact scores. Of many layers that is
    # so far that nothing would be noticed.
    usual = np.maximum(largest * 2.0**-10, 8 * np.abs(scores - exact))
    bounds = np.minimum(2 * bound, usual)
    if weights == "int8":
        known = as_series("export_c", "calibration", calibration)
        expected = "expected calibration with the channels and length of example_input, "
        check_axes(f"{expected}{example.shape[1:]}", known.shape, *example.shape[1:])
        if len(known) > CALIBRATION:
            known = known[np.linspace(0, len(known) - 1, CALIBRATION).astype(int)]
        theirs = network.labels(_scores_of(plain, known))
        network = quantize(network, known)
        labels, same = network.labels(network.run(X)), network.labels(network.run(known)) == theirs
        scores, bounds = network.scores(X), np.zeros_like(scores)
        agreement = len(known), int(same.sum())
        if same.mean() < AGREEMENT:
            warnings.warn(
                f"int8 predicts PyTorch's class for only {same.sum()} of the {len(known)} "
                "calibration series; scale all channels to a similar range before the network, or "
                "export float32",
                stacklevel=4,  # the caller's line, above the decorators' frames
            )  # fmt: skip
    bounds = np.minimum(bounds, np.finfo(np.float32).max).astype(np.float32)
    cases = list(zip(X, scores, bounds, labels, strict=True))
    write_folder(folder, write_c(network, name, cases, agreement, named))
    return folder


def _scores_of(model: nn.Module, X: Array) -> Array:
    with torch.autocast("cpu", enabled=False):
        series = torch.split(torch.from_numpy(X), batch_sizes(len(X), 64))
        parts = [one_tensor(model(part)) for part in series]
    scores: Array = torch.cat(parts).numpy()
    return scores.reshape(len(X), -1)  # of one score it may give (n_cases,)
