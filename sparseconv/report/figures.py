"""Draw the figures of a run: how the network learned, what it sees and where its weights are.

matplotlib is imported when a figure is drawn, and used without pyplot, so any thread can draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sparseconv.core.blocks import Region
    from sparseconv.core.pattern import KernelCSR
    from sparseconv.models import DSN
    from sparseconv.nn.conv import SparseConv1d

# Okabe and Ito's palette: distinct with every common form of colour blindness.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SERIES = (BLUE, ORANGE, GREEN, PURPLE)
INK, FAINT, GRID = "#1f2933", "#64707d", "#e4e8ec"


def receptive_field_sizes(pattern: KernelCSR) -> NDArray[np.int64]:
    """Compute each kernel's effective receptive field, int64 ``(C_out, C_in // groups)``.

    The size, in time steps, is ``last - first + 1`` over the kernel's active taps, or 0 if it has
    none (Xiao et al., NeurIPS 2022, equation 2).
    """
    crow, col = (t.numpy().astype(np.int64) for t in (pattern.crow_indices, pattern.col_indices))
    sizes = np.zeros(len(crow) - 1, dtype=np.int64)
    used = crow[1:] > crow[:-1]
    sizes[used] = col[crow[1:][used] - 1] - col[crow[:-1][used]] + 1
    return sizes.reshape(pattern.shape[:2])


def group_profiles(layer: SparseConv1d) -> NDArray[np.float64]:
    """Sum a layer's weight magnitudes by kernel group and tap, float64 ``(n_groups, K)``."""
    weight = layer.dense_weight().detach().abs().double().cpu()
    groups = sorted(region.out_channels for region in layer.regions)
    return np.stack([weight[first:end].sum((0, 1)).numpy() for first, end in groups])


def learning_curve(history: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw a history's loss and accuracy per epoch, with the pattern updates.

    Thin lines show single epochs; thick lines show a running median over about a thirtieth of the
    run.
    """
    from scipy.ndimage import median_filter

    epochs = np.array([row["epoch"] for row in history])
    updates = np.array([row["epoch"] for row in history if row["updated"]])
    kept = best_epoch(history)["epoch"]
    figure = new_figure("Learning", 9.0, 3.7)
    axes = figure.subplots(1, 2, sharex=True)
    for ax, quantity in zip(axes, ("loss", "accuracy"), strict=True):
        style_axes(ax, "epoch", f"{quantity} (NLL, nats)" if quantity == "loss" else quantity)
        for subset, colour in (("train", BLUE), ("test", ORANGE)):
            if f"{subset}_{quantity}" not in history[0]:
                continue
            curve = np.array([row[f"{subset}_{quantity}"] for row in history])
            ax.plot(epochs, curve, color=colour, linewidth=0.7, alpha=0.35)
            median = median_filter(curve, size=2 * (len(curve) // 60) + 1, mode="nearest")
            ax.plot(epochs, median, color=colour, linewidth=1.6, label=subset)
        # A rug in axes coordinates: hundreds of updates stay legible and never hide the curve.
        ax.vlines(
            updates, 0, 0.03, transform=ax.get_xaxis_transform(), color=FAINT, linewidth=0.6,
            label=f"pattern update ({len(updates)})" if len(updates) else None,
        )  # fmt: skip
        ax.axvline(kept, color=GREEN, linewidth=1, linestyle=(0, (4, 3)), label=f"kept ({kept})")
    if min(row["train_loss"] for row in history) > 0:
        axes[0].set_yscale("log")
    axes[1].set_ylim(top=1.02)
    legend_above(figure, axes[1])
    return save(figure, path)


def best_epoch(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the row with the lowest training loss; in a tie, the last one."""
    return min(reversed(history), key=lambda row: float(row["train_loss"]))


def kernels_by_size(model: DSN) -> list[NDArray[np.int64]]:
    """Count each sparse layer's kernels by receptive field size: 0, 1, 2, ..., K."""
    patterns = [layer.pattern for layer in model.sparse_layers()]
    return [np.bincount(receptive_field_sizes(p).ravel(), minlength=p.shape[2] + 1)
            for p in patterns]  # fmt: skip


def receptive_fields(
    kernels: Mapping[str, Sequence[NDArray[np.int64] | NDArray[np.float64]]], path: str | Path
) -> Path:
    """Draw the distribution of effective receptive field sizes, per layer and per stack.

    Upper row: sizes of a layer's kernels. Lower row: sizes of all paths through the layers so far,
    ``sum(s) - (depth - 1)`` (Xiao et al., NeurIPS 2022, equations 2 and 3 and Figure 6). Paths
    through an empty kernel are omitted. 1x1 convolutions connect every output to every input, so
    this distribution is the convolution of the layers' distributions.

    Args:
        kernels: for each label, the result of ``kernels_by_size`` or means of shares; the networks
            have the same depth.
        path: the PNG file.
    """
    depth = len(next(iter(kernels.values())))
    figure = new_figure("Effective receptive fields", 2.35 * depth, 4.6)
    axes = figure.subplots(2, depth, sharex="row", sharey="row", squeeze=False)
    for (label, layers), colour in zip(kernels.items(), SERIES, strict=False):
        paths = [c[1:] / (c[1:].sum() or 1) for c in layers]  # index i: size i + 1
        for i, ax in enumerate(axes[0]):
            share = layers[i] / layers[i].sum() * 100
            ax.stairs(share, np.arange(len(share) + 1) - 0.5, color=colour, linewidth=1.4,
                      fill=False, label=label)  # fmt: skip
            ax.stairs(share, np.arange(len(share) + 1) - 0.5, color=colour, alpha=0.12, fill=True)
        for i, ax in enumerate(axes[1]):
            together = reduce(np.convolve, paths[: i + 1])
            sizes = np.arange(1, len(together) + 1)
            ax.plot(sizes, np.cumsum(together) * 100, color=colour, linewidth=1.6)
    for i in range(depth):
        axes[0, i].set_title(f"layer {i + 1}", fontsize=9, color=INK, loc="left")
        stack = "layer 1" if i == 0 else f"layers 1-{i + 1}"
        axes[1, i].set_title(stack, fontsize=9, color=INK, loc="left")
        style_axes(axes[0, i], "kernel's field (time steps)", "kernels (%)" * (i == 0))
        style_axes(axes[1, i], "path's field (time steps)", "shorter or equal (%)" * (i == 0))
    legend_above(figure, axes[0, 0])
    return save(figure, path)


def group_weights(
    profiles: Sequence[NDArray[np.float64]], regions: Sequence[Region], path: str | Path
) -> Path:
    """Draw the weights of each kernel group, per layer (after the paper's Figure 8).

    A cell shows the summed magnitude of a group's active weights at one tap, divided by the layer's
    largest such sum. Hatched taps are outside the group's region. The number at the right is the
    group's share of the layer's summed magnitude.

    Args:
        profiles: the layers' ``group_profiles``.
        regions: each layer's regions.
        path: the PNG file.
    """
    regions = sorted(regions, key=lambda region: region.out_channels)
    height = 0.9 + 0.95 * len(profiles)
    figure = new_figure("Normalised active weights of the kernel groups", 9.0, height)
    axes = figure.subplots(len(profiles), 1, sharex=True, squeeze=False)[:, 0]
    for i, (ax, profile) in enumerate(zip(axes, profiles, strict=True)):
        total, peak = profile.sum(), profile.max(initial=0.0)
        kernel_size = profile.shape[1]
        image = ax.imshow(profile / (peak or 1.0), aspect="auto", cmap="viridis", vmin=0, vmax=1,
                          extent=(-0.5, kernel_size - 0.5, len(profile) - 0.5, -0.5))  # fmt: skip
        for row, region in enumerate(regions):
            for left, right in ((0, region.taps[0]), (region.taps[1], kernel_size)):
                if right > left:
                    ax.fill_between(
                        (left - 0.5, right - 0.5), row - 0.5, row + 0.5,
                        facecolor="white", edgecolor=GRID, hatch="////", linewidth=0,
                    )  # fmt: skip
            share = profile[row].sum() / (total or 1.0)
            ax.annotate(f"{share:.0%}", (kernel_size - 0.5, row), (6, 0), va="center", fontsize=8,
                        textcoords="offset points", color=INK, annotation_clip=False)  # fmt: skip
        ax.set_yticks(range(len(regions)), [f"group {row + 1}" for row in range(len(regions))])
        style_axes(ax, "tap" if i == len(profiles) - 1 else "", "", grid=False)
        ax.set_title(f"layer {i + 1}", fontsize=9, color=INK, loc="left", pad=3)
    bar = figure.colorbar(image, ax=list(axes), pad=0.07, fraction=0.03)
    bar.set_label("Σ|w| at the tap / layer's largest", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8, colors=FAINT)
    bar.outline.set_visible(False)
    axes[0].annotate("share", (1, 1), (6, 6), xycoords="axes fraction", fontsize=8, color=FAINT,
                     textcoords="offset points", annotation_clip=False)  # fmt: skip
    return save(figure, path)


def require_matplotlib() -> type[Figure]:
    """Return matplotlib's ``Figure``; raise RuntimeError if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError(
            f"figures need matplotlib, which cannot be imported ({error}); "
            "install it with `pip install 'sparseconv[tsc]'`"
        ) from error
    return Figure


def new_figure(title: str, width: float, height: float) -> Figure:
    """Create a white figure of ``width x height`` inches with a title at the left."""
    figure = require_matplotlib()(figsize=(width, height), layout="constrained", facecolor="white")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=INK)
    return figure


def style_axes(ax: Axes, xlabel: str, ylabel: str, *, grid: bool = True) -> None:
    for side, spine in ax.spines.items():
        spine.set_visible(grid and side in ("left", "bottom"))
        spine.set_color(FAINT)
    ax.tick_params(which="both", labelsize=8, colors=FAINT, length=3 if grid else 0)
    ax.set_xlabel(xlabel, fontsize=8.5, color=INK)
    ax.set_ylabel(ylabel, fontsize=8.5, color=INK)
    if grid:
        ax.grid(color=GRID, linewidth=0.7)
        ax.set_axisbelow(True)


def legend_above(figure: Figure, ax: Axes) -> None:
    """Put one legend above the plots, to the right of the title."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), fontsize=8.5,
                  frameon=False, labelcolor=INK, handlelength=1.4)  # fmt: skip


def save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=170)
    return path
