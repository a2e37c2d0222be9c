"""``sc.factorize``: which layers it takes, and one clear error for the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_state import everything
from torch import nn
from torch.nn.utils import parametrizations, prune

import sparseconv as sc


def test_all_sets_that_exist() -> None:
    model = nn.ModuleDict(
        {
            "a": nn.Conv1d(8, 8, 9),
            "b": nn.Conv1d(8, 8, 9, bias=False),
            "other": nn.Conv1d(8, 8, 9, padding=1),
            "grouped": nn.Conv1d(8, 8, 9, groups=2),
            "sparse": sc.SparseConv1d(8, 8, 9, density=0.5),
            "tiny": nn.Conv1d(2, 1, 1),
            "tiny too": nn.Conv1d(2, 1, 1),
            "linear": nn.Linear(3, 3),
            "pruned": prune.l1_unstructured(nn.Conv1d(8, 8, 9), "weight", 3),
        }
    )
    small, report = sc.factorize(model, rank=2)
    assert [found.layers for found in report.sets] == [("a", "b")]
    assert report.left.keys() == {"other", "grouped", "sparse", "tiny", "tiny too", "pruned"}
    assert "no other layer" in report.left["other"]
    assert "groups=2" in report.left["grouped"]
    assert "sc.to_dense" in report.left["sparse"]
    assert "rank of at most 2" in report.left["tiny"] or "parameters" in report.left["tiny"]
    assert type(small["sparse"]) is sc.SparseConv1d
    assert all(name in str(report) for name in report.left)
    _, alone = sc.factorize(model, method="svd", rank=2)
    assert [found.layers for found in alone.sets] == [("a",), ("b",), ("other",)]


def hooked(conv: nn.Conv1d) -> nn.Conv1d:
    conv.register_forward_hook(lambda *_: None)
    return conv


def tagged(conv: nn.Conv1d) -> nn.Conv1d:
    conv.tag = 3
    return conv


def holding(value: float) -> nn.Conv1d:
    conv = nn.Conv1d(4, 4, 3)
    conv.weight.data[0, 0, 0] = value
    return conv


class Own(nn.Conv1d):
    """Another."""


OBSTACLES: list[tuple[nn.Module, str]] = [
    (nn.Conv1d(4, 4, 5), r"one shape, but '0' has .*3.* and '1' .*5"),
    (nn.Conv1d(4, 4, 3, stride=2), r"one stride, but '0' has \(1,\) and '1' \(2,\)"),
    (nn.Conv1d(4, 4, 3, padding="same"), "one padding"),
    (nn.Conv1d(4, 4, 3, dilation=2), "one dilation"),
    (nn.Conv1d(4, 4, 3, padding_mode="reflect"), "one padding_mode"),
    (nn.Conv1d(4, 4, 3, dtype=torch.float64), "one dtype"),
    (nn.Conv1d(4, 4, 3).requires_grad_(False), "one requires_grad"),
    (nn.Conv1d(4, 4, 3, groups=2), "groups=2"),
    (nn.ConvTranspose1d(4, 4, 3), "a ConvTranspose1d"),
    (sc.SparseConv1d(4, 4, 3), "a SparseConv1d; sc.to_dense"),
    (nn.Conv2d(4, 4, 3), "a Conv2d"),
    (Own(4, 4, 3), "an? Own"),
    (nn.LazyConv1d(4, 3), "a LazyConv1d"),
    (hooked(nn.Conv1d(4, 4, 3)), "has hooks"),
    (tagged(nn.Conv1d(4, 4, 3)), "own 'tag'"),
    (prune.l1_unstructured(nn.Conv1d(4, 4, 3), "weight", 2), "computed"),
    (prune.l1_unstructured(nn.Conv1d(4, 4, 3), "bias", 2), "computed"),
    (parametrizations.weight_norm(nn.Conv1d(4, 4, 3)), "computed"),
    (holding(float("nan")), "finite"),
    (nn.Conv1d(4, 4, 3, device="meta"), "finite"),
    (nn.Conv1d(4, 4, 3, dtype=torch.complex64), "finite"),
]


@pytest.mark.parametrize(("layer", "message"), OBSTACLES, ids=lambda value: str(value)[:40])
def test_layers_that_it_cannot_replace(layer: nn.Module, message: str) -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3), layer)
    with pytest.raises(ValueError, match=message):
        sc.factorize(model, [["0", "1"]], rank=1)
    assert model[1] is layer


def test_layers_that_are_tied_to_something_else() -> None:
    tied = nn.Sequential(*(nn.Conv1d(4, 4, 3) for _ in range(3)))
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"'0' cannot be factorized: it shares.*'0', '2'"):
        sc.factorize(tied, [["0", "1"]], rank=1)
    listed = nn.Sequential(*(nn.Conv1d(4, 4, 3) for _ in range(3)))
    listed.kept = [listed[1]]
    with pytest.raises(ValueError, match=r"stands in Sequential\.kept"):
        sc.factorize(listed, [["0", "1"]], rank=1)
    _, report = sc.factorize(listed, rank=1)
    assert report.sets[0].layers == ("0", "2")
    assert report.left.keys() == {"1"}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "either rank or compression"),
    ({"rank": 2, "compression": 2}, "either rank or compression"),
    ({"rank": 0}, "at least 1, but got 0"),
    ({"rank": 1.5}, "rank must be an int, but got 1.5"),
    ({"rank": True}, "rank must be an int"),
    ({"compression": 1}, "above 1, but got 1"),
    ({"compression": float("nan")}, "above 1"),
    ({"compression": "2"}, "compression must be a number"),
    ({"rank": 1, "method": "middle"}, "method must be one of"),
    ({"rank": 1, "layers": "0"}, "lists of names"),
    ({"rank": 1, "layers": ["0", "1"]}, "lists of names"),
    ({"rank": 1, "layers": []}, "lists of names"),
    ({"rank": 1, "layers": 5}, "lists of names, .*but got 5"),
    ({"rank": 1, "layers": [5]}, r"lists of names, .*but got \[5\]"),
    ({"rank": 1, "layers": [[["0"]], "1"]}, "lists of names"),
    ({"rank": 1, "layers": [[["0"], "1"]]}, r"of \['0', '1', '2'\], but got \['0'\]"),
    ({"rank": 1, "layers": [["0", "9"]]}, r"of \['0', '1', '2'\], but got '9'"),
    ({"rank": 1, "layers": [["0", 1]]}, "but got 1"),
    ({"rank": 1, "layers": [["0", "0"]]}, "once"),
    ({"rank": 1, "layers": [["0", "1"], ["1", "2"]]}, "once"),
    ({"rank": 1, "layers": [["0"]]}, "sets of several"),
    ({"rank": 1, "layers": [[]]}, "sets of several"),
    ({"rank": 1, "layers": [["0", "1"]], "method": "svd"}, "sets of one"),
    ({"rank": 9, "layers": [["0", "1"]]}, "a rank of at most 8, .*but got 9"),
    ({"rank": 5, "layers": [["0", "1"]], "method": "right"}, "a rank of at most 4"),
    ({"rank": 99}, "no layer gets smaller"),
    ({"compression": 50}, "no layer gets smaller; .*at most"),
    ({"compression": 50, "layers": [["0", "1"]]}, r"\['0', '1'\]: expected a compression of at"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=str)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    model = nn.Sequential(*(nn.Conv1d(4, 4, 3) for _ in range(3)))
    before = everything(model)
    with pytest.raises((TypeError, ValueError), match=message):
        sc.factorize(model, **arguments)
    assert everything(model) == before


def test_wrong_models() -> None:
    with pytest.raises(TypeError, match=r"an nn\.Module, but got int"):
        sc.factorize(3, rank=1)
    with pytest.raises(ValueError, match=r"holds no nn\.Conv1d"):
        sc.factorize(nn.Linear(2, 2), rank=1)
    with pytest.raises(ValueError, match=r"before torch\.compile"):
        sc.factorize(torch.compile(nn.Sequential(nn.Conv1d(4, 4, 3))), method="svd", rank=1)
