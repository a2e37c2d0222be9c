"""Draw the graph of a block as torch runs it, and as the backend of ``torch.compile`` leaves it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx
import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from sparseconv import SparseConv1d
from sparseconv.compiler import sparseconv
from sparseconv.models.classifier import Parallel, Residual, shortcut
from sparseconv.report import figures

NAMES = {
    "fprop": "sparse conv", "conv": "sparse conv", "conv1d": "1x1 conv", "pointwise": "1x1 conv",
    "max_pool1d": "max pool", "max_pool": "max pool", "batch_norm": "norm",
}  # fmt: skip
COLOURS = {"enter": figures.ORANGE, "leave": figures.ORANGE, "lanes": figures.BLUE}


def block() -> nn.Module:
    convs = [SparseConv1d(32, 32, taps, padding="same", density=0.1) for taps in (39, 19, 9)]
    pooled = nn.Sequential(nn.MaxPool1d(3, 1, 1), nn.Conv1d(64, 32, 1))
    parts = nn.Sequential(nn.Conv1d(64, 32, 1), Parallel(convs)), pooled
    body = nn.Sequential(Parallel(parts), nn.BatchNorm1d(128), nn.ReLU())
    return Residual(body, shortcut(64, 128))


def graphs() -> list[networkx.DiGraph]:
    """Return what flows from the block's input to its output, before and after the pass."""
    found = []
    x = torch.randn(16, 64, 128)

    def backend(gm: GraphModule, inputs: Sequence[Any]) -> Any:
        places = zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=True)
        (source,) = (node for node, tensor in places if tensor.shape == x.shape)
        found.append(flow(gm.graph, source))
        run = sparseconv(gm, inputs)
        found.append(flow(gm.graph, source))
        return run

    torch.compiler.reset()
    torch.compile(block(), backend=backend)(x)
    torch.compiler.reset()
    return found


def flow(graph: Graph, source: Node) -> networkx.DiGraph:
    """Return the operations on series, and the conversions that are part of ``fprop``."""
    drawn = networkx.DiGraph()
    ends: dict[Node, str] = {source: "x"}  # where each value comes from
    drawn.add_node("x", text="x", kind="torch")
    for node in graph.nodes:
        before = [ends[read] for read in node.all_input_nodes if read in ends]
        if not before or node.op == "output":
            continue
        if node.target is operator.getitem:
            ends[node] = before[0]
            continue
        steps = ["enter", title(node), "leave"] if op_name(node) == "fprop" else [title(node)]
        for text in steps:
            inside = any(drawn.nodes[name]["kind"] in ("enter", "lanes") for name in before)
            kind = text if text in ("enter", "leave") else "lanes" if inside else "torch"
            name = f"{node.name} {text}"
            drawn.add_node(name, text=text, kind=kind)
            drawn.add_edges_from((each, name) for each in before)
            before = [name]
        ends[node] = name
    return drawn


def op_name(node: Node) -> str:
    """Return the name of what a node calls: an op, or the function that computes it directly."""
    target: Any = node.target
    return str(getattr(target, "_opname", None) or getattr(target, "__name__", target))


def title(node: Node) -> str:
    name = op_name(node).removeprefix("lanes_")
    name = NAMES.get(name, name).replace(" ", "\n")
    if op_name(node) == "lanes_norm":
        joins = ("cat", len(node.args[0]) > 1), ("add", node.args[5]), ("relu", node.args[9])
        name = "\n".join((name, *(f"+ {what}" for what, joined in joins if joined)))
    return name


def places(graph: networkx.DiGraph) -> dict[Any, tuple[float, float]]:
    """Place nodes in columns, each at the mean height of those before it."""
    column: dict[Any, int] = {}
    for node in networkx.topological_sort(graph):
        column[node] = 1 + max((column[before] for before in graph.pred[node]), default=-1)
    for start, end in list(graph.edges):  # a long edge passes between the nodes of each column
        passed = [(start, end, i) for i in range(column[start] + 1, column[end])]
        if passed:
            graph.remove_edge(start, end)
            networkx.add_path(graph, (start, *passed, end))
            column |= {point: point[2] for point in passed}
    found: dict[Any, tuple[float, float]] = {}
    for i in range(max(column.values()) + 1):
        nodes = [node for node in graph if column[node] == i]
        heights = {
            node: sum(found[before][1] for before in graph.pred[node])
            / max(1, graph.in_degree(node))
            for node in nodes
        }
        for row, node in enumerate(sorted(nodes, key=heights.__getitem__)):
            found[node] = i, row - (len(nodes) - 1) / 2
    return found


def draw(path: Path) -> None:
    """Draw both graphs, one above the other."""
    figure = figures.new_figure("", 9.0, 5.4)
    titles = "in torch", 'with backend="sparseconv"'
    for ax, graph, name in zip(figure.subplots(2, 1), graphs(), titles, strict=True):
        at = places(graph)
        ax.set_title(name, fontsize=10, color=figures.INK, loc="left")
        ax.set_axis_off()
        ax.set_xlim(-0.4, 10.4)
        ax.set_ylim(-2.6, 2.6)
        for edge in graph.edges:
            x, y = zip(*map(at.__getitem__, edge), strict=True)
            ax.plot(x, y, color=figures.FAINT, linewidth=1, zorder=1)
        for node, data in graph.nodes(data=True):
            if data:
                colour = COLOURS.get(data["kind"], figures.FAINT)
                box = {"boxstyle": "round,pad=0.3", "color": colour}
                ax.text(*at[node], data["text"], fontsize=8.5, ha="center", va="center",
                        color="white", bbox=box)  # fmt: skip
    figures.save(figure, path)
