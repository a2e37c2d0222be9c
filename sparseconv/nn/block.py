"""Sequences of modules in fewer passes over memory, with the outcome of one module at a time.

A sequence is planned once: each row of a table of ``Step`` names the types of some modules in a
row, and what computes them together. At every call a step looks whether that is the same as
calling its modules, and calls them if not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.functional.fused import batch_norm_relu, conv1x1, runs_here
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.hooks import has_own_code, in_plain_eager_mode
from sparseconv.ops.backends import extension, resolve_backend

# From these sizes on the kernels win, and what they lose below is some 20 us of Python. Times of
# forward and backward over torch's, one thread of an AMD EPYC (Zen 5), 141 channels in, cold:
#   (N, L)          (1, 24)  (5, 24)  (16, 24)  (1, 128)  (16, 128)  (16, 512)
#   1x1 to 47          0.73     1.35      2.13      1.20       2.02       1.69
#   1x1 to 2           0.78     0.82      3.37      0.67       3.32       2.57
#   BatchNorm, ReLU    0.78     1.01      1.47      1.16       2.33       2.23
CONV_POSITIONS = 512  # N * L
CONV_MACS = 600_000  # or so many multiply-adds
NORM_ELEMENTS = 16_384  # N * C * L

Place = tuple[nn.Sequential, Any]  # a module (broken models hold others), behind what holds it
Plan = list[Callable[[Tensor], Tensor]]


class Step:
    """Modules in a row that one computation may replace, and what to run where it may not."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.owner = places[0][0]
        self.modules: list[Any] = [module for _, module in places]
        self.one_by_one: Plan = [*self.modules]

    @classmethod
    def fits(cls, places: Sequence[Place]) -> bool:
        """Whether modules of the right types can be such a step at all."""
        return True

    def is_watched(self) -> bool:
        """Whether calling one of the modules does more than compute."""
        return any(map(has_own_code, self.modules))

    def run(self, x: Tensor) -> Tensor | None:
        """Compute what the modules compute, or None where they have to do it themselves."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        y = self.run(x) if type(x) in (Tensor, nn.Parameter) else None
        if y is None:
            y = x
            for step in self.one_by_one:
                y = step(y)
        return y


Table = Sequence[tuple[tuple[tuple[type[nn.Module], ...], ...], type[Step]]]


def plan(places: Sequence[Place], table: Table) -> Plan:
    """Cut modules into steps, each by the first row of the table that fits, and single modules.

    Example:
        >>> block = Block(nn.BatchNorm1d(3), nn.ReLU(), nn.ReLU())
        >>> steps = plan([(block, module) for module in block], FUSED)
        >>> [type(step).__name__ for step in steps]
        ['NormThenRelu', 'ReLU']
    """
    steps: Plan = []
    i = 0
    while i < len(places):
        step = _first_step(places[i:], table)
        steps.append(places[i][1] if step is None else step)
        i += 1 if step is None else len(step.modules)
    return steps


def _first_step(places: Sequence[Place], table: Table) -> Step | None:
    for kinds, step in table:
        part = places[: len(kinds)]
        if (
            len(part) == len(kinds)
            and all(type(module) in kind for (_, module), kind in zip(part, kinds, strict=True))
            and step.fits(part)
        ):
            return step(part)
    return None


class FusedSequential(nn.Sequential):
    """``nn.Sequential`` that runs by a plan, unless something could see a difference."""

    # The modules that were planned, with their types, and the plan.
    _planned: tuple[tuple[Any, ...], Plan] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Run the modules in their order."""
        if not in_plain_eager_mode():
            return super().forward(input)  # type: ignore[no-any-return, no-untyped-call]
        present = self._present()
        key = self.training, list(map(id, present)), list(map(type, present))
        planned = self._planned
        if planned is None or planned[0] != key:
            planned = self._planned = key, self._plan()
        x = input
        for step in planned[1]:
            x = step(x)
        return x

    def _present(self) -> list[Any]:
        """Everything that a plan is made of."""
        return list(self._modules.values())

    def _plan(self) -> Plan:
        return plan([(self, module) for module in self._modules.values()], FUSED)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_planned"}

    def __prepare_scriptable__(self) -> nn.Sequential:
        plain = nn.Sequential()
        plain.__dict__.update(self.__getstate__())
        return plain


class Block(FusedSequential):
    """``nn.Sequential`` around a ``SparseConv1d``, with faster ways through its neighbours.

    A 1x1 ``nn.Conv1d``, and in training an ``nn.BatchNorm1d`` followed by ``nn.ReLU``, are computed
    by ``functional.fused`` when the backend is the C++ kernels on AVX2 or better, the input is
    large enough for that to be faster, and the outcome is the same: modules of exactly these types,
    without hooks, on float32 or float64 CPU tensors, outside torch.compile, autocast, torch.func
    and modes that see functions or operations. Everything else runs module by module.

    Args:
        modules: as for ``nn.Sequential``.
        backend: as in ``sparse_conv1d``; None means that of the ``SparseConv1d`` among the modules,
            and without one runs module by module.

    Example:
        >>> import torch
        >>> from collections import OrderedDict
        >>> norm = nn.BatchNorm1d(3)
        >>> block = Block(OrderedDict(conv=SparseConv1d(2, 3, 5), norm=norm, relu=nn.ReLU()))
        >>> block(torch.zeros(4, 2, 9)).shape
        torch.Size([4, 3, 5])
    """

    def __init__(self, *modules: Any, backend: str | None = None) -> None:
        super().__init__(*modules)
        self.backend = backend

    def __getitem__(self, index: int | slice) -> Any:
        """A module, or a block of some of them that keeps the backend."""
        part: Any = super().__getitem__(index)
        if isinstance(index, slice):
            part.backend = self.backend
        return part

    def kernels_run_on(self, device: torch.device) -> bool:
        """Whether the backend of this block is the C++ kernels, on AVX2 or better."""
        backend = self.backend
        for module in self._modules.values():
            if backend is None and isinstance(module, SparseConv1d):
                backend = module.backend
        if backend is None or resolve_backend(backend, device) != "cpp" or extension is None:
            return False
        # Without the instruction a multiply-add is imitated, bit for bit: 30 to 100 times slower.
        return bool(extension.isa() != "baseline")


class BlockStep(Step):
    """Modules of one ``Block``, by a kernel that wins from a certain size on."""

    owner: Block

    @classmethod
    def fits(cls, places: Sequence[Place]) -> bool:
        owner = places[0][0]
        return isinstance(owner, Block) and all(other is owner for other, _ in places)

    def kernel_runs(self, x: Tensor) -> bool:
        """Whether the kernel computes what the modules do."""
        return not self.is_watched() and runs_here(x) and self.owner.kernels_run_on(x.device)


class Pointwise(BlockStep):
    """A 1x1 ``nn.Conv1d`` without bias."""

    def run(self, x: Tensor) -> Tensor | None:
        (conv,) = self.modules
        positions = x.numel() // conv.in_channels
        macs = positions * conv.in_channels * conv.out_channels
        if (
            (positions >= CONV_POSITIONS or macs >= CONV_MACS)
            and is_pointwise(conv)
            and conv.bias is None
            and self.kernel_runs(x)
        ):
            return conv1x1(x, conv.weight)
        return None


class NormThenRelu(BlockStep):
    """An ``nn.BatchNorm1d`` in training, and ``nn.ReLU``."""

    def run(self, x: Tensor) -> Tensor | None:
        norm, _ = self.modules
        if norm.training and x.numel() >= NORM_ELEMENTS and self.kernel_runs(x):
            return batch_norm_relu(x, norm)
        return None


def is_pointwise(conv: nn.Conv1d) -> bool:
    """Whether the layer maps each position by itself, all alike."""
    return (
        conv.groups == 1
        and conv.kernel_size == conv.stride == (1,)
        and conv.padding in ((0,), "same", "valid")
    )


CONV, NORM, RELU = (nn.Conv1d,), (nn.BatchNorm1d,), (nn.ReLU,)
FUSED: Table = (((CONV,), Pointwise), ((NORM, RELU), NormThenRelu))
