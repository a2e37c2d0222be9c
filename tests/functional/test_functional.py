"""sparse_conv1d refuses what F.conv1d refuses, on both sides of every limit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparseconv as sc
from sparseconv.core.checks import ArgumentError
from sparseconv.core.geometry import Geometry
from sparseconv.reference import dense_weight

PATTERN = sc.KernelCSR.from_mask(torch.tensor([[[1, 0, 1], [0, 1, 1]], [[1, 1, 1], [1, 0, 0]]]) > 0)
BACKENDS = ("cpp", "reference")
X, VALUES, BIAS = torch.randn(3, 2, 9), torch.randn(PATTERN.nnz), torch.randn(2)
WEIGHT = dense_weight(VALUES, PATTERN)


def convolve(backend: str, **changes: Any) -> Tensor:
    arguments = {"input": X, "values": VALUES, "pattern": PATTERN, "bias": BIAS} | changes
    return sc.sparse_conv1d(**arguments, backend=backend)


@pytest.mark.promise("P5")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("changes", "error", "name"),
    [
        ({"input": [1.0]}, TypeError, "input"),
        ({"input": X.double()}, TypeError, "Input"),
        ({"input": torch.randn(3, 3, 9)}, ArgumentError, "channels"),
        ({"input": torch.randn(2, 0)}, ValueError, "input"),
        ({"input": torch.randn(1, 3, 2, 9)}, ValueError, "input"),
        ({"input": X.to_sparse()}, TypeError, "input"),
        ({"input": X.int(), "values": VALUES.int(), "bias": None}, TypeError, "dtypes"),
        ({"dilation": 4, "input": X[..., :8]}, ArgumentError, "Kernel size"),
        ({"values": 1.0}, TypeError, "values"),
        ({"values": VALUES.double()}, TypeError, "values"),
        ({"values": VALUES.to("meta")}, ValueError, "values"),
        ({"values": VALUES[:-1]}, ValueError, "values"),
        ({"values": VALUES[None]}, ValueError, "values"),
        ({"pattern": PATTERN.to_mask()}, TypeError, "pattern"),
        ({"bias": 1.0}, TypeError, "bias"),
        ({"bias": BIAS.double()}, TypeError, "bias"),
        ({"bias": torch.randn(2, 1)}, ArgumentError, "bias"),
        ({"stride": 0}, ValueError, "stride"),
        ({"stride": 2**29}, ValueError, "stride"),
        ({"dilation": 0}, ValueError, "dilation"),
        ({"groups": 0}, ValueError, "groups"),
        ({"groups": 3}, ValueError, "groups"),
        ({"padding": (0, -1)}, ValueError, "padding"),
        ({"padding": (0, 2**31)}, ValueError, "padding"),
        ({"padding": (1, 1, 1)}, TypeError, "padding"),
        ({"padding": "SAME"}, ValueError, "padding"),
        ({"padding": "same", "stride": 2}, ValueError, "'same'"),
        ({"padding_mode": "wrap"}, ValueError, "padding_mode"),
    ],
)
def test_refuses(changes: dict[str, Any], error: type[Exception], name: str, backend: str) -> None:
    with pytest.raises(error, match=name):
        convolve(backend, **changes)


def test_numbers_of_a_geometry() -> None:
    """An odd total of "same" goes to the right; strides just below the limit are taken."""
    for dilation, expected in ((1, (1, 2)), (2, (3, 3)), (3, (4, 5))):
        assert Geometry.of((1, 1, 4), 1, "same", dilation, 1, "zeros").padding == expected
    assert Geometry.of((1, 1, 1), 2**31 - 1, (2**31 - 1, 0), 1, 1, "zeros").stride == 2**31 - 1
    assert Geometry.of((2, 2, 1), 2**29 - 1, 0, 1, 1, "zeros").stride == 2**29 - 1
    geometry = Geometry.of((1, 1, 3), 2, (1, 2), 3, 1, "zeros")
    assert [geometry.output_length(n) for n in (4, 5, 6, 7)] == [1, 1, 2, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_good_argument(backend: str, count_cases: Any) -> None:
    for length, changes, pad in (
        (3, {}, (0, 0)),
        (9, {"dilation": 4}, (0, 0)),
        (2, {"padding": (1, 0)}, (1, 0)),
        (2, {"padding": (0, 1)}, (0, 1)),
        (1, {"padding": "same"}, (1, 1)),
        (4, {"padding": "same", "dilation": 3}, (3, 3)),
        (9, {"padding": "valid", "stride": 2}, (0, 0)),
        (9, {"padding": (2,), "stride": 2}, (2, 2)),
        (9, {"padding": [2]}, (2, 2)),
    ):
        x = torch.randn(2, 2, length)
        options = {k: v for k, v in changes.items() if k != "padding"}
        theirs = F.conv1d(F.pad(x, pad), WEIGHT, BIAS, **options)
        torch.testing.assert_close(convolve(backend, input=x, **changes), theirs)
        count_cases(1)
    tuples = {"stride": (2,), "dilation": [2], "groups": (1,)}
    theirs = F.conv1d(X, WEIGHT, BIAS, 2, 0, 2)
    torch.testing.assert_close(convolve(backend, **tuples), theirs)
    for mode, room in (("circular", 4), ("reflect", 3)):
        x = torch.randn(2, 2, 4)
        for padding in ((room, 0), (0, room), (room, room)):
            theirs = F.conv1d(F.pad(x, padding, mode), WEIGHT, BIAS)
            ours = convolve(backend, input=x, padding=padding, padding_mode=mode)
            torch.testing.assert_close(ours, theirs)
            wider = tuple(n + (n == room) for n in padding)
            with pytest.raises(ValueError, match=mode):
                convolve(backend, input=x, padding=wider, padding_mode=mode)
            count_cases(2)
