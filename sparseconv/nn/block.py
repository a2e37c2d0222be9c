"""Sequences of modules whose neighbours are computed together, with equal results.

A sequence is planned once: each row of a table of ``Link`` names the types of some modules in a
row that may be stages of a chain (``functional.chain``). At every call a link looks whether that is
the same as calling its modules. Stages that follow each other become one chain; where one cannot
run, the modules do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.functional.chain import CHAIN_DTYPES, Chain, Conv, Stage, runs_eagerly
from sparseconv.nn.hooks import all_modules_are_watched, has_own_code
from sparseconv.nn.links import LINKS, Link, Table
from sparseconv.ops.backends import extension

_CPU = torch.device("cpu")


class Plan:
    """Modules cut into links, each by the first row of the table that fits, and single modules.

    Example:
        >>> modules = [nn.BatchNorm1d(3), nn.ReLU(), nn.ReLU()]
        >>> [type(step).__name__ for step in Plan(modules).steps]
        ['NormLink', 'ReLU']
    """

    def __init__(self, modules: Sequence[Any], table: Table = LINKS) -> None:
        self.steps: list[Any] = []  # links, and modules that are none
        while modules:
            link = _first_link(modules, table)
            self.steps.append(modules[0] if link is None else link[0])
            modules = modules[1 if link is None else link[1] :]
        self._chains: defaultdict[int, Chain] = defaultdict(Chain)  # by the step after them

    def is_ready(self, x: Any) -> bool:
        """Whether what the links are for holds now."""
        return all(step.is_ready(x) for step in self.steps if isinstance(step, Link))

    def __call__(self, x: Tensor) -> Tensor:
        """Compute what the modules compute, in chains as far as possible."""
        links: list[Link] = []
        stages: list[Stage] = []
        for i, step in enumerate(self.steps):
            link = step if isinstance(step, Link) else None
            stage = link.stage(x) if link is not None and (links or _may_chain(x)) else None
            if link is not None and stage is not None:
                links.append(link)
                stages.append(stage)
                if not link.ends_chain:
                    continue
            if links:
                x = self._run(i, links, stages, x)
                links, stages = [], []
            if stage is None:
                x = step(x) if link is None else link.one_by_one(x)
        return self._run(len(self.steps), links, stages, x) if links else x

    def _run(self, end: int, links: Sequence[Link], stages: Sequence[Stage], x: Tensor) -> Tensor:
        # Alone a layer is faster without the conversions, and without a sparse one torch is.
        if len(links) > 1 and any(type(stage) is Conv for stage in stages):
            y = self._chains[end](x, stages)
            if y is not None:
                return links[-1].finish(y)
        for link in links:
            x = link.one_by_one(x)
        return x


def _first_link(modules: Sequence[Any], table: Table) -> tuple[Link, int] | None:
    for kinds, link in table:
        part = modules[: len(kinds)]
        if (
            len(part) == len(kinds)
            and all(type(module) in kind for module, kind in zip(part, kinds, strict=True))
            and link.fits(part)
        ):
            return link(part), len(kinds)
    return None


def _may_chain(x: Any) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.dim() == 3
        and x.dtype in CHAIN_DTYPES
        and x.device == _CPU
        and x.layout == torch.strided
        and x.numel() > 0
        and extension is not None
        # Without the instruction a multiply-add is imitated, bit for bit: 30 to 100 times slower.
        and bool(extension.isa() != "baseline")
    )


class Planned:
    """Runs what some sequences hold, one after the other, by a plan that is made once.

    Args:
        table: the links of the plan.
        otherwise: those of a second plan, by which everything runs where a link of the first one
            is not ready.
    """

    def __init__(self, table: Table = LINKS, otherwise: Table | None = None) -> None:
        self._tables = (table,) if otherwise is None else (table, otherwise)
        # The modules that were planned, with their types, and the plans.
        self._planned: tuple[tuple[Any, ...], list[Plan]] | None = None

    def __call__(self, sequences: Iterable[nn.Module], x: Tensor) -> Tensor:
        modules = [module for sequence in sequences for module in leaves(sequence)]
        key = list(map(id, modules)), list(map(type, modules))
        planned = self._planned
        if planned is None or planned[0] != key:
            plans = [Plan(modules, table) for table in self._tables]
            planned = self._planned = key, plans  # as a whole, for other threads may be here too
        plans = planned[1]
        first = plans[0]
        return first(x) if len(plans) == 1 or first.is_ready(x) else plans[1](x)


def leaves(module: Any) -> list[Any]:
    """Return the modules that a Sequential runs, in order; of Sequentials inside of it, theirs.

    A Sequential inside of a Sequential counts as its modules, unless calling it does more.
    """
    if not _only_runs_its_modules(module):
        return [module]
    found = []
    for inner in module._modules.values():
        plain = _only_runs_its_modules(inner) and not has_own_code(inner)
        found += leaves(inner) if plain else [inner]
    return found


def _only_runs_its_modules(module: Any) -> bool:
    kind = type(module)
    return kind is nn.Sequential or (
        issubclass(kind, FusedSequential)
        and kind.forward is FusedSequential.forward
        and kind.__iter__ is nn.Sequential.__iter__
    )


def _may_fuse() -> bool:
    return runs_eagerly() and not all_modules_are_watched()


class FusedSequential(nn.Sequential):
    """``nn.Sequential`` that runs by a plan, unless something could see a difference."""

    _run: Planned | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Run the modules in their order."""
        if not _may_fuse():
            return super().forward(input)  # type: ignore[no-any-return, no-untyped-call]
        return self._run_all((self,), input)

    def forward_after(self, first: nn.Module, input: Tensor) -> Tensor:
        """Compute ``self(first(input))``, where hooks of neither would be called."""
        if not _may_fuse():
            y: Tensor = self(first(input))
            return y
        return self._run_all((first, self), input)

    def _run_all(self, sequences: Iterable[nn.Module], input: Tensor) -> Tensor:
        if self._run is None:
            self._run = self._plan()
        return self._run(sequences, input)

    def _plan(self) -> Planned:
        return Planned()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_run"}

    def __prepare_scriptable__(self) -> nn.Sequential:
        plain = nn.Sequential()
        plain.__dict__.update(self.__getstate__())
        return plain


class Block(FusedSequential):
    """``nn.Sequential`` around sparse convolutions, with faster ways through their neighbours.

    Layers that follow each other are computed as one chain, whose tensors stay in the kernels' own
    order: a ``SparseConv1d`` that keeps the length, a 1x1 ``nn.Conv1d``, an
    ``nn.BatchNorm1d`` followed by ``nn.ReLU``. That is so when the backend is the C++ kernels on
    AVX2 or better, and the results are equal: modules of exactly these types, without hooks, on
    float32 or float64 CPU tensors, outside torch.compile, autocast, torch.func and modes that see
    functions or operations, and without hooks of saved tensors. Everything else runs module by
    module. For backward a chain saves its input and all its parameters: writing into one of them
    before it is an error, also where a single module would allow it.

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
