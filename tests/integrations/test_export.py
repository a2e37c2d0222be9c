"""Exported graphs: torch.export, AOTInductor and torch.jit, loaded in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from layers import OPTIONS
from torch import Tensor, nn
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx

import sparseconv as sc

pytestmark = pytest.mark.promise("P7")


def make_model() -> nn.Module:
    torch.manual_seed(0)
    first, second = sc.SparseConv1d(3, 6, 5, **OPTIONS[2]), sc.SparseConv1d(6, 4, 3, **OPTIONS[1])
    return nn.Sequential(first, nn.BatchNorm1d(6), nn.ReLU(), second).eval()


def assert_computes_elsewhere(
    model: Callable[[Tensor], Tensor], files: dict[Path, str], channels: int = 3
) -> None:
    """Each file has the bits of the model, for another batch size and length than it was made."""
    x = torch.randn(7, channels, 33)
    with torch.no_grad():
        case = next(iter(files)).with_name("case.pt")
        torch.save((x, model(x)), case)
    code = f"import torch, sparseconv\nx, wanted = torch.load({str(case)!r})\n"
    for path, load in files.items():
        code += f"path = {str(path)!r}\nmodel = {load}\n"
        code += "with torch.no_grad(): print(model(x).equal(wanted))\n"
    python = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(python, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"] * len(files), done.stderr


@pytest.mark.tool("torch.export, saved and loaded in a fresh process", "works", "import sparseconv")
@pytest.mark.tool("torch.jit.trace, saved and loaded", "works", "import sparseconv; for inference")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes are looked at
def test_graphs_in_a_fresh_process(tmp_path: Path) -> None:
    """One graph for all batch sizes and lengths; who loads it has to import this library."""
    model, x = make_model(), torch.randn(2, 3, 20)
    exported, traced = tmp_path / "model.pt2", tmp_path / "model.pt"
    sizes = ({0: Dim("n", min=1), 2: Dim("length", min=8)},)
    torch.export.save(export(model, (x,), dynamic_shapes=sizes), exported)
    torch.jit.save(torch.jit.trace(model, x), traced)
    loads = {exported: "torch.export.load(path).module()", traced: "torch.jit.load(path)"}
    assert_computes_elsewhere(model, loads)


@pytest.mark.campaign("compiles for 20 seconds")
@pytest.mark.tool("AOTInductor (aoti_compile_and_package)", "works", "import sparseconv")
def test_aotinductor(tmp_path: Path) -> None:
    model, sizes = make_model()[3], ({0: Dim("n", min=1), 2: Dim("length", min=8)},)
    with torch.no_grad():
        program = export(model, (torch.randn(2, 6, 20),), dynamic_shapes=sizes)
        path = tmp_path / "model.pt2"
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    assert_computes_elsewhere(model, {path: "torch._inductor.aoti_load_package(path)"}, channels=6)


def test_export_is_the_first_to_run_a_model() -> None:
    """What it makes for its graph is good for the model afterwards, and the other way round."""
    x, other = torch.randn(4, 2, 24), torch.randn(3, 2, 40)
    # Without a max torch 2.10 stumbles over a bound that it finds by itself.
    sizes = ({0: Dim("n"), 2: Dim("length", min=9, max=10**6)},)
    for model in (sc.models.DSN(2, 3, nf=3, kernel_size=9, depth=3), sc.SparseConv1d(2, 3, 5)):
        model.eval()
        program = export(model, (x,), dynamic_shapes=sizes)
        torch.testing.assert_close(program.module()(other), model(other))
        assert program.run_decompositions().module()(x[:3]).equal(model(x[:3]))
        model.train()(x).sum().backward()


@pytest.mark.tool("torch.jit.script", "refuses", "deprecated in torch; export instead")
def test_script_is_refused() -> None:
    for model in (sc.SparseConv1d(2, 3, 5), sc.models.DSN(1, 2, nf=3, depth=2)):
        with pytest.raises(NotImplementedError, match=r"use torch\.export"):
            torch.jit.script(model)


@pytest.mark.tool("training an exported or traced graph", "works")
def test_graphs_can_be_trained() -> None:
    """The op has gradients, so graphs that hold it alone have them too."""
    layer, x = sc.SparseConv1d(2, 3, 5), torch.randn(4, 2, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(layer, x)
    program = export(layer, (x,)).module()
    for graph in (program, traced, make_fx(layer)(x)):
        leaf = x.clone().requires_grad_()
        y = graph(leaf)
        assert y.equal(layer(x))
        (found,) = torch.autograd.grad(y.sum(), leaf)
        assert found.equal(torch.autograd.grad(layer(leaf).sum(), leaf)[0])
    program(x).sum().backward()
    layer(x).sum().backward()
    assert program.values.grad.equal(layer.values.grad)


@pytest.mark.tool("torch.fx.symbolic_trace", "refuses")
def test_symbolic_tracing_is_refused_and_a_leaf_works() -> None:
    model = nn.Sequential(sc.SparseConv1d(2, 3, 5), nn.ReLU())
    with pytest.raises(TypeError, match="Proxy"):
        torch.fx.symbolic_trace(model)

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return isinstance(m, sc.SparseConv1d) or super().is_leaf_module(m, name)

    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    x = torch.randn(2, 2, 20)
    assert traced(x).equal(model(x))
