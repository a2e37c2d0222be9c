"""Compute adjacent modules of a sequence together; results differ at most by rounding.

A sequence is planned once. Each row of a table names the types of consecutive modules that may form
a stage of a chain (``functional.chain``), and their ``Link``. On every call, each link checks
whether a stage would compute the same as the modules of the link. Consecutive stages form a chain;
other modules run as usual.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.functional.chain import CHAIN_DTYPES, Chain, Conv, Stage, in_rows, runs_eagerly
from sparseconv.nn.links import LINKS, Link, Table
from sparseconv.nn.modules import all_modules_are_watched, computes_as, has_own_code
from sparseconv.ops.backends import extension

_CPU = torch.device("cpu")


class Plan:
    """Divide modules into links: each fits the first possible row of the table, or has one module.

    Example:
        >>> modules = [nn.BatchNorm1d(3), nn.ReLU(), nn.ReLU()]
        >>> [type(link).__name__ for link in Plan(modules, LINKS).links]
        ['NormLink', 'Link']
    """

    def __init__(self, modules: Sequence[Any], table: Table) -> None:
        self.links: list[Link] = []
        while modules:
            self.links.append(_first_link(modules, table))
            modules = modules[len(self.links[-1].modules) :]
        self._chains: defaultdict[int, Chain] = defaultdict(Chain)  # by the index of the next link

    def __call__(self, x: Tensor) -> Tensor:
        """Compute what the modules compute, in chains where possible."""
        links: list[Link] = []
        stages: list[Stage] = []
        for i, link in enumerate(self.links):
            stage = link.stage(x) if links or (_may_chain(x) and link.may_begin(x)) else None
            if stage is not None:
                links.append(link)
                stages.append(stage)
                if not link.ends_chain:
                    continue
            if links:
                x = self._run(i, links, stages, x)
                links, stages = [], []
            if stage is None:
                x = link.one_by_one(x)
        return self._run(len(self.links), links, stages, x) if links else x

    def _run(self, end: int, links: Sequence[Link], stages: Sequence[Stage], x: Tensor) -> Tensor:
        # The conversions pay only for several stages, of which at least one is sparse.
        if len(links) > 1 and any(type(stage) is Conv for stage in stages):
            y = self._chains[end](x, stages)
            if y is not None:
                return links[-1].finish(y)
        for link in links:
            x = link.one_by_one(x)
        return x


def _first_link(modules: Sequence[Any], table: Table) -> Link:
    for kinds, make in table:
        part = modules[: len(kinds)]
        if len(part) == len(kinds) and all(map(computes_as, part, kinds)):
            link = make(part)
            if link.fits():
                return link
    return Link(modules[:1])


def _may_chain(x: Any) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.dim() == 3
        and (in_rows(x) or (x.dtype in CHAIN_DTYPES and not torch.is_autocast_enabled("cpu")))
        and x.device == _CPU
        and x.layout == torch.strided
        and x.numel() > 0
        and extension is not None
        # Without the instruction, multiply-adds are emulated bit for bit, 30 to 100 times slower.
        and bool(extension.has_fma() or in_rows(x))
    )


def leaves(module: Any) -> list[Any]:
    """Return the modules that a Sequential runs, in order.

    An inner Sequential is replaced with its modules, unless calling it does more than run them.
    """
    if not only_runs_its_modules(module):
        return [module]
    found = []
    for inner in module._modules.values():
        plain = only_runs_its_modules(inner) and not has_own_code(inner)
        found += leaves(inner) if plain else [inner]
    return found


def only_runs_its_modules(module: Any) -> bool:
    """Return whether a module is a Sequential that runs like torch's, or a ``Block``."""
    kind = type(module)
    return (
        issubclass(kind, nn.Sequential)
        and kind.forward in (nn.Sequential.forward, Block.forward)
        and kind.__iter__ is nn.Sequential.__iter__
    )


def _may_fuse() -> bool:
    return runs_eagerly() and not all_modules_are_watched()


class Block(nn.Sequential):
    """Run like ``nn.Sequential``, but compute sparse convolutions together with adjacent modules.

    Consecutive layers form a chain, whose tensors stay in the kernels' memory layout. A chain can
    contain a ``SparseConv1d`` that preserves the length, with or without ``nn.ReLU``; a 1x1
    ``nn.Conv1d``; and an ``nn.BatchNorm1d`` followed by ``nn.ReLU``. Results of sparse convolutions
    are bit-identical to those of the separate modules; other results may differ by rounding.

    A chain needs the C++ kernels, and float32 or float64 tensors on a CPU with fused multiply-adds
    (AVX2 or later, or 64-bit Arm). On a CPU with AMX or AVX-512 BF16, it also computes blocks of 16
    channels in bfloat16, including under autocast; there, any result may differ by rounding.

    Modules with hooks or overridden code run one by one. So do all modules under torch.compile,
    any other use of autocast, torch.func, saved-tensor hooks, and modes that intercept functions or
    operations.

    A chain saves its input and all its parameters for the backward pass, so modifying one of them
    in place before that pass is an error.

    Args:
        modules: as for ``nn.Sequential``.

    Example:
        >>> from collections import OrderedDict
        >>> from sparseconv import SparseConv1d
        >>> norm = nn.BatchNorm1d(3)
        >>> block = Block(OrderedDict(conv=SparseConv1d(2, 3, 5), norm=norm, relu=nn.ReLU()))
        >>> block(torch.zeros(4, 2, 9)).shape
        torch.Size([4, 3, 5])
    """

    # The identities and types of the planned modules, and their plan.
    _planned: tuple[Any, Plan] | None = None

    @property
    def _table(self) -> Table:
        return LINKS

    def forward(self, input: Tensor) -> Tensor:
        """Run the modules in order."""
        if not _may_fuse():
            return super().forward(input)  # type: ignore[no-any-return, no-untyped-call]
        return self._run(leaves(self), input)

    def forward_after(self, first: nn.Module, input: Tensor) -> Tensor:
        """Compute ``self(first(input))``, with a single plan for both where possible."""
        if has_own_code(first) or has_own_code(self) or not _may_fuse():
            y: Tensor = self(first(input))
            return y
        return self._run(leaves(first) + leaves(self), input)

    def _run(self, modules: list[Any], x: Tensor) -> Tensor:
        key = list(map(id, modules)), list(map(type, modules))
        planned = self._planned
        if planned is None or planned[0] != key:
            # One assignment, because other threads may run this too.
            planned = self._planned = key, Plan(modules, self._table)
        return planned[1](x)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_planned"}

    def __prepare_scriptable__(self) -> nn.Sequential:
        plain = nn.Sequential()
        plain.__dict__.update(self.__getstate__())
        return plain
