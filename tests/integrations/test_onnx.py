"""ONNX: what ``torch.onnx.export`` writes, executed by onnxruntime."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sparseconv as sc
from sparseconv import SparseConv1d
from sparseconv.testing import Case, expected

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ANY_SIZE = ({0: "n", 2: "length"},)  # batch and length of the input are free


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)  # the exporter reports every package that it does not find
    yield
    logging.disable(logging.NOTSET)


def exported(model: nn.Module, x: Tensor, **options: Any) -> Any:
    """The model as an ONNX protocol buffer, checked by ONNX itself."""
    program = torch.onnx.export(
        model, (x,), **{"dynamic_shapes": ANY_SIZE, "verbose": False, **options}
    )
    onnx.checker.check_model(program.model_proto, full_check=True)
    return program.model_proto


def run(proto: Any, x: Tensor) -> list[Tensor]:
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = runtime.InferenceSession(
        proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    outputs = session.run(None, {session.get_inputs()[0].name: x.detach().numpy()})
    return [torch.from_numpy(y) for y in outputs]


def domains(proto: Any) -> set[str]:
    """Of all operators: '' is ONNX itself."""
    return {node.domain for node in proto.graph.node} | {f.domain for f in proto.functions}


CASES = [
    Case(n=2, in_channels=4, out_channels=6, kernel_size=5, length=30, padding_mode=mode, **options)
    for mode in ("zeros", "replicate", "reflect", "circular")
    for options in (
        {"padding": 3, "stride": 2, "groups": 2, "bias": False},
        {"padding": "same", "dilation": 2, "pattern": "empty_row"},
    )
] + [Case(n=2, in_channels=4, out_channels=6, kernel_size=1, length=30, pattern="none")]


class Side(nn.Module):
    """Every case's layer on the same input."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for case in cases:
            tensors = case.tensors()
            layer = SparseConv1d(
                case.in_channels, case.out_channels, case.kernel_size, **case.options,
                bias=case.bias, dtype=tensors.input.dtype, pattern=case.make_pattern(),
            )  # fmt: skip
            with torch.no_grad():
                layer.values.copy_(tensors.values)
                if layer.bias is not None:
                    layer.bias.copy_(tensors.bias)
            self.layers.append(layer)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


@pytest.mark.promise("P1")
@pytest.mark.tool("torch.onnx.export, run in onnxruntime", "works")
def test_layers_lie_within_the_bound(count_cases: Callable[[int], None]) -> None:
    """All padding modes; other batch sizes and lengths than those of the export."""
    proto = exported(Side(CASES).eval(), CASES[0].tensors().input)
    assert domains(proto) <= {"", "ai.onnx"}
    for sizes in ({"n": 1, "length": 17}, {"n": 5, "length": 64}):
        x = Case(**{**vars(CASES[0]), **sizes}).tensors().input
        for case, y in zip(CASES, run(proto, x), strict=True):
            exact, bound = expected(case, case.tensors()._replace(input=x, grad=y))[0]
            error = (y.double() - exact).abs()
            assert bool((error <= bound).all()), (case, error.max())
        count_cases(len(CASES))


@pytest.mark.tool("torch.onnx.export of a DSN", "works", "any batch size and length")
def test_a_dsn_of_any_length() -> None:
    """Also of lengths that its pooling of 50 samples divides, and those it does not."""
    torch.manual_seed(0)
    model = sc.models.DSN(3, 4, nf=4, kernel_size=9, depth=2).eval()
    with torch.no_grad():  # so that the classes differ
        for parameter in model.parameters():
            parameter.mul_(3)
    proto = exported(sc.optimize_for_inference(model), torch.randn(2, 3, 300))
    assert domains(proto) <= {"", "ai.onnx"}
    for n, length in ((2, 29), (7, 53), (2, 300), (3, 501)):
        x = torch.randn(n, 3, length)
        wanted = model(x).detach()
        torch.testing.assert_close(run(proto, x)[0], wanted)
        assert wanted.std(dim=0).max() > 1e-3


@pytest.mark.tool("torch.onnx.export of an unbatched input", "works")
@pytest.mark.tool("torch.onnx.export of a converted network", "works")
@pytest.mark.tool("torch.onnx.export(dynamo=False)", "works")
@pytest.mark.filterwarnings("ignore")  # deprecated, and it reports every size that it looks at
def test_networks(tmp_path: Path) -> None:
    """Without a batch dimension, made by ``convert``, and written by the older exporter.

    The mask of pruned values is in the graph, and a transposed convolution is one operator.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 16, 9, padding=4, padding_mode="replicate"), nn.ReLU(), nn.Conv1d(16, 8, 5),
        nn.ConvTranspose1d(8, 6, 5, 3, padding=1, output_padding=2, groups=2),
    ).eval()  # fmt: skip
    for conv in (model[0], model[2], model[3]):
        prune.l1_unstructured(conv, "weight", 0.9)
    sparse, report = sc.convert(model)
    assert sum(layer.sparse for layer in report.layers) == 3
    prune.l1_unstructured(sparse[2], "values", 0.5)
    x, y, path = torch.randn(2, 3, 40), torch.randn(5, 3, 61), os.fspath(tmp_path / "model.onnx")
    proto, wanted = exported(sparse, x), sparse(y).detach()
    assert "ConvTranspose" in {node.op_type for node in proto.graph.node}
    torch.testing.assert_close(run(proto, y)[0], wanted)
    unbatched = exported(sparse, x[0], dynamic_shapes=({1: "length"},))
    torch.testing.assert_close(run(unbatched, y[0])[0], wanted[0])
    sizes = {"x": {0: "n", 2: "length"}}
    torch.onnx.export(sparse, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=sizes)
    torch.testing.assert_close(run(onnx.load(path), y)[0], wanted)


@pytest.mark.tool("onnxruntime.quantization, static and dynamic", "works")
def test_the_quantiser_finds_the_weights(tmp_path: Path) -> None:
    """Weights of convolutions are initializers of the file, and become integers of 8 bits."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    torch.manual_seed(0)
    model = nn.Sequential(
        SparseConv1d(2, 16, 15, padding="same", density=0.2), nn.ReLU(),
        SparseConv1d(16, 16, 9, padding="same", density=0.2), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(16, 3),
    ).eval()  # fmt: skip
    proto = exported(model, torch.randn(1, 2, 100))
    held = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    convs = [node for node in proto.graph.node if node.op_type == "Conv"]
    assert [held[node.input[1]] for node in convs] == [(16, 2, 15), (16, 16, 9)]
    assert len(proto.SerializeToString()) < 2830 * 4 + 20_000, "once, without values"
    X, path = torch.randn(8, 2, 100), os.fspath(tmp_path / "model.onnx")
    onnx.save(proto, path)
    static, dynamic = (os.fspath(tmp_path / f"{name}.onnx") for name in ("static", "dynamic"))
    left = iter([{proto.graph.input[0].name: x[None].numpy()} for x in X])
    readings = SimpleNamespace(get_next=lambda: next(left, None))
    quantization.quantize_static(path, static, readings)
    quantization.quantize_dynamic(path, dynamic, weight_type=quantization.QuantType.QUInt8)
    for found in map(onnx.load, (static, dynamic)):
        bytes_ = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
        small = sum(np.prod(t.dims) for t in found.graph.initializer if t.data_type in bytes_)
        assert small >= 16 * 2 * 15 + 16 * 16 * 9 + 3 * 16
        assert (run(found, X)[0] - model(X)).abs().max() < 0.01
