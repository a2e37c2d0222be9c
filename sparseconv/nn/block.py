"""Run modules as the graph that the compiler makes of them, in eager mode.

In that graph, tensors stay in the kernels' own order from one layer to the next (``ops.lanes``).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.compiler.backend import rewrite
from sparseconv.compiler.recorder import Recorder
from sparseconv.core.modules import all_modules_are_watched, has_own_code
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.pooling import ShortAvgPool1d
from sparseconv.ops.backends import extension, resolve_backend
from sparseconv.ops.orders import runs_eagerly

_PLAIN = {Tensor, nn.Parameter}
_CPU = torch.device("cpu")
_MOST_GRAPHS = 256  # that are kept
_SIMPLE = {bool, int, float, str, tuple, type(None)}
# Attributes that all modules have, and a list in which convolutions keep their padding.
_OF_ALL = {*vars(nn.Module()), "_reversed_padding_repeated_twice"}
# What these compute depends only on their attributes, their tensors and the modules inside.
KNOWN: set[type[nn.Module]] = {
    *(SparseConv1d, nn.Conv1d, nn.ConvTranspose1d, nn.Linear, nn.BatchNorm1d, nn.Dropout),
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.GLU),
    *(nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, ShortAvgPool1d, nn.Upsample),
    *(nn.ConstantPad1d, nn.ZeroPad1d, nn.ReplicationPad1d),
    *(nn.Sequential, nn.Identity, nn.Flatten, nn.LogSoftmax, nn.Softmax),
}


def run_together(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Call modules one after the other, sparse ones together with their neighbours.

    Adjacent modules of the classes in ``KNOWN`` run as a graph if some of it can be in the kernels'
    order. Modules with hooks or other code are called, and so are all where something else than
    eager execution traces, transforms or observes them.
    """
    if (
        not _any_is_sparse(modules)
        or not runs_eagerly()
        or all_modules_are_watched()
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    ):
        return _call(modules, x)
    rest = [leaf for module in modules for leaf in _leaves(module)]
    while rest:
        first, graph = _first_graph(rest, x)
        x = _call(rest[:first], x) if graph is None else graph()
        rest = rest[first:]
    return x


def _any_is_sparse(modules: Iterable[nn.Module | None]) -> bool:
    for module in modules:  # in a dense network, this takes a tenth of the time of describing it
        if module is not None and (
            type(module) is SparseConv1d or _any_is_sparse(module._modules.values())
        ):
            return True
    return False


def _call(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _leaves(module: nn.Module) -> list[nn.Module]:
    """Return the modules that a Sequential runs, in order; other modules as they are."""
    if type(module) not in (nn.Sequential, Block) or has_own_code(module):
        return [module]
    return [leaf for inner in module._modules.values() for leaf in _leaves(inner)]  # type: ignore[arg-type]


# By what decides them: modes, the CPU's instructions, the input, and the modules.
_graphs: dict[tuple[Any, ...], Callable[..., Tensor] | None] = {}


def _first_graph(modules: list[nn.Module], x: Any) -> tuple[int, Callable[[], Tensor] | None]:
    """Return the number of modules to compute next, and the graph of them, or None."""
    if type(x) not in _PLAIN or not x.is_cpu or x.layout is not torch.strided or x.is_nested:
        return 1, None
    if x.is_inference() and torch.is_grad_enabled():  # autograd could not save it
        return 1, None
    assert extension is not None  # or torch would not run eagerly
    key: list[Any] = [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")]
    key += extension.has_fma(), extension.has_block_kernels()
    held: list[Tensor | None] = [x]
    known = 0
    for module in modules:
        before = len(key), len(held)
        if not _describe(module, key, held):
            del key[before[0] :], held[before[1] :]
            break
        known += 1
    tensors = [t for t in held if t is not None]
    # A tensor that occurs twice could be two in another model.
    distinct = len(set(map(id, tensors))) == len(tensors)
    if known == 0 or not distinct or not _PLAIN.issuperset(map(type, tensors)):
        return known or 1, None
    which = *key, *[t if t is None else (t.shape, t.dtype, t.is_cpu) for t in held]
    try:
        run = _graphs[which]
    except KeyError:
        if len(_graphs) >= _MOST_GRAPHS:
            _graphs.pop(next(iter(_graphs)), None)
        pays = any(part is SparseConv1d for part in key) and all(t.is_cpu for t in tensors)
        run = _graphs[which] = _made(modules[:known], tensors) if pays else None
    except TypeError:  # a list in a tuple that the user added to a module
        return known, None
    return known, None if run is None else functools.partial(run, *tensors)


def _describe(module: nn.Module, key: list[Any], held: list[Tensor | None]) -> bool:
    """Add what decides the graph of a module, and its tensors; return whether it is known."""
    kind = type(module)
    if kind not in KNOWN or has_own_code(module):
        return False
    parameters, buffers, inside = module._parameters, module._buffers, module._modules
    key += kind, (*parameters, *buffers, *inside)
    if isinstance(module, SparseConv1d):
        module._indices()  # read buffers that were written
        usable = module.dense_probe is None and "values" in parameters and "bias" in parameters
        if not usable or resolve_backend(module.backend, _CPU) != "cpp":
            return False
        key.append(module._geometry())
    else:
        attributes = module.__dict__
        values = list(map(attributes.__getitem__, _added(*attributes)))
        if not _SIMPLE.issuperset(map(type, values)):
            return False  # one may be a weight, or not comparable
        key += values
        if kind is nn.BatchNorm1d and module.momentum is None:
            return False  # it computes with the number of batches
        if kind is nn.Conv1d and module.padding_mode != "zeros":
            return False  # it pads by a list, which the key has not
    held += parameters.values()
    held += buffers.values()
    for inner in inside.values():
        if inner is not None and not _describe(inner, key, held):
            return False
    return True


@functools.lru_cache
def _added(*names: str) -> tuple[str, ...]:
    """Return those attributes of a module that its class or its user added."""
    return "training", *(name for name in names if name not in _OF_ALL)


def _made(modules: list[nn.Module], tensors: list[Tensor]) -> Callable[..., Tensor] | None:
    """Make the graph of the modules, or return None if nothing in it is in the kernels' order."""
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        memo: dict[int, Any] = {id(t): t.detach().clone() for t in tensors}
        given = list(memo.values())
        for module in nn.ModuleList(modules).modules():  # attributes are not copied
            own = (value for name, value in vars(module).items() if name not in _OF_ALL)
            memo |= {id(value): value for value in own}
        twins = copy.deepcopy(modules, memo)
        try:
            with Recorder(given) as recorder:
                y: Any = _call(twins, given[0])
        except (IndexError, RuntimeError, TypeError, ValueError):
            return None  # the modules say what does not fit
    if not isinstance(y, Tensor):
        return None
    graph, report = rewrite(recorder.returning(y), given)
    if not report.enters:
        return None
    # A GraphModule's own function would stay in torch's cache of sources for ever.
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(code.src, scope)
    return functools.partial(scope["forward"], graph.owning_module)


class Block(nn.Sequential):
    """Run like ``nn.Sequential``, but adjacent layers as ``torch.compile`` with our backend does.

    These are the layers of ``KNOWN``, among them 1x1 convolutions, BatchNorm, ReLU and pooling;
    others are called, as are layers with hooks or overridden code. Results may differ by rounding
    from those of the separate modules. Each new combination of sizes, dtypes and modes needs a
    graph. Making it takes as long as another forward pass, and 20 to 30 ms (the first one 0.2 s);
    the last 256 that were made are kept.

    All modules run one by one wherever something else than eager execution traces, transforms or
    observes them, as in torch.compile.

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

    def forward(self, input: Tensor) -> Tensor:
        """Run the modules in order."""
        return run_together(list(self), input)

    def __prepare_scriptable__(self) -> nn.Sequential:
        plain = nn.Sequential()
        plain.__dict__.update(self.__dict__)
        return plain


KNOWN.add(Block)
