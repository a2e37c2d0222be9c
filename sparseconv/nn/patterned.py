"""Define a module whose parameter ``values`` contains the active weights of a pattern."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor, is_functorch_wrapped_tensor
from torch.compiler import is_dynamo_compiling

from sparseconv.core.blocks import declare
from sparseconv.core.pattern import KernelCSR
from sparseconv.core.tracing import outside_tracing
from sparseconv.nn.buffer_check import (
    OVERWRITTEN,
    check_in_graph,
    content_of,
    is_mixed,
    is_truncated,
    new_tag,
)
from sparseconv.nn.dense_gradient import new_probe
from sparseconv.nn.modules import Parametrizations
from sparseconv.nn.rewiring import (
    LAYERS,
    are_shared,
    check_alone,
    check_mode,
    check_movable,
    check_pattern,
    holds_values,
    memory_of,
    move,
    survivors,
    watch_optimizers,
)
from sparseconv.nn.state import INDICES, check_copied, check_floats, give, own_entries, read_layer
from sparseconv.ops import gpu_plans

_BUFFERS = (*INDICES, "pattern_tag")
# What was read: the three buffers, the sum of their versions, and the tag's version.
_UNSEEN: tuple[Any, Any, Any, int, int] = (None, None, None, -1, -1)


class PatternedModule(nn.Module):
    """Hold a pattern and its values, and change, save and load them together.

    The pattern is what the buffers ``crow_indices`` and ``col_indices`` contain, whoever wrote
    them; ``_pattern`` is the latest reading.
    """

    values: nn.Parameter
    groups: int
    crow_indices: Tensor
    col_indices: Tensor
    pattern_tag: Tensor
    _pattern: KernelCSR
    _own_tag: Tensor

    def __new__(cls, *_: Any, **__: Any) -> Self:  # also called for copies and by pickle
        layer = super().__new__(cls)
        LAYERS[id(layer)] = layer
        return layer

    def __init__(self) -> None:
        super().__init__()
        self._seen = _UNSEEN
        self._memory = 0  # of the values with which the indices were written
        self.dense_probe: Tensor | None = None  # set by DSTScheduler for a step; see `probed`

    @property
    def pattern(self) -> KernelCSR:
        """Return the pattern in the buffers.

        Raises:
            RuntimeError: the buffers contain no pattern, or the values might not belong to it.
        """
        crow, _ = self._indices()
        if not is_dynamo_compiling() and is_batchedtensor(crow):
            raise RuntimeError("the members of an ensemble under torch.vmap have several patterns")
        return self._pattern

    def _indices(self) -> tuple[Tensor, Tensor]:
        """Return both index tensors; check them if they were written to since the last call."""
        held, seen = self._buffers, self._seen
        crow: Any = held["crow_indices"]
        col: Any = held["col_indices"]
        tag: Any = held["pattern_tag"]
        if is_dynamo_compiling():
            check_in_graph(tag, self._own_tag, crow, col, self._pattern)
        elif (
            crow is not seen[0]
            or col is not seen[1]
            or tag is not seen[2]
            or crow._version + col._version + tag._version != seen[3]
        ):
            self._read()
        return crow, col

    def _read(self) -> None:
        """Read buffers that others may have written or replaced; see ``pattern``."""
        tensors: list[Any] = [self._buffers[name] for name in _BUFFERS]
        with outside_tracing():
            crow, col, tag = map(content_of, tensors)
            if crow is None or col is None:
                return  # nothing to read, or an ensemble
            # Before the first use, others may write all buffers, as DistributedDataParallel does.
            guarded = tag is not None and tensors[2] is self._seen[2]
            touched = guarded and tensors[2]._version != self._seen[4]
            if touched and crow.is_cuda and torch.is_grad_enabled():
                # In training, DistributedDataParallel writes to all buffers before each forward
                # pass. One check is enough: further ones would make each layer wait for the GPU.
                gpu_plans.keep(crow, col)
                self._mark_seen()
                return
            if tag is not None and guarded and is_mixed(tag.cpu(), self._own_tag.cpu()):
                raise RuntimeError(OVERWRITTEN)
            own = self._pattern.anywhere()
            if not all(_equal(a, b) for a, b in zip((crow, col), own, strict=True)):
                in_place = all(a is b for a, b in zip(tensors, self._seen, strict=False))
                self._accept(crow, col, touched, in_place)
            if tag is None or tag.device != crow.device or tag.is_inference():
                tag = self._own_tag.to(crow.device, copy=True)
                self.register_buffer("pattern_tag", tag, persistent=False)
            elif not _equal(tag, self._own_tag):
                tag.copy_(self._own_tag)
        self._mark_seen()

    def _accept(self, crow: Tensor, col: Tensor, touched: bool, in_place: bool) -> None:
        """Make what others wrote the pattern, unless they averaged it."""
        pattern = self._pattern
        arrays = (crow, col), pattern.anywhere()
        truncated = is_truncated(*(torch.cat([x.cpu() for x in pair]) for pair in arrays))
        if touched != truncated and (touched or in_place):
            raise RuntimeError(OVERWRITTEN)
        if not touched:  # else an average of equal patterns
            try:
                pattern = KernelCSR(crow, col, pattern.shape, pattern.block)
            except (TypeError, ValueError) as error:
                raise RuntimeError(
                    f"the indices of this layer were overwritten, and are not a pattern: {error}. "
                    "After to_empty(), call reset_parameters() or load a state dict"
                ) from error
        # Not every write counts as a version, but the kernels' plans depend on versions.
        for array, new in zip((crow, col), pattern.anywhere(), strict=True):
            if not array.is_inference():
                array.copy_(new)
        self._pattern, self._own_tag = pattern, new_tag(pattern)

    def _mark_seen(self) -> None:
        """Record that the buffers contain the pattern."""
        crow, col, tag = self.crow_indices, self.col_indices, self.pattern_tag
        # Inference tensors have no version, and a transform's wrapper is used once.
        if any(t.is_inference() or is_functorch_wrapped_tensor(t) for t in (crow, col, tag)):
            if tag is self._seen[2]:
                self._seen = None, None, tag, -1, tag._version
            return
        versions = crow._version + col._version + tag._version
        self._seen = crow, col, tag, versions, tag._version
        declare(crow, col, self._pattern.block)

    @torch.no_grad()
    def set_pattern(self, new: KernelCSR, values: Tensor | None = None) -> None:
        """Change which weights are active; see ``rewire`` for limits and errors.

        Args:
            new: the new pattern, of the same shape.
            values: ``(nnz,)`` in the new CSR order. None keeps the surviving values and starts the
                others at 0.

        Example:
            >>> from sparseconv import SparseConv1d
            >>> layer = SparseConv1d(1, 1, 3, pattern=KernelCSR.full((1, 1, 3)))
            >>> layer.set_pattern(KernelCSR.from_positions(torch.tensor([2]), (1, 1, 3)))
            >>> layer.values.shape
            torch.Size([1])
        """
        check_pattern(new, self._pattern.shape, self.groups)
        if values is not None:
            check_floats("values", values, new.nnz)
            values = values.to(self.values)
        self.rewire(new, survivors(self.pattern, new))
        if values is not None:
            self.values.copy_(values)

    @torch.no_grad()
    def rewire(self, pattern: KernelCSR, source: Tensor, follow: Sequence[Tensor] = ()) -> None:
        """Change which weights are active, and move the tensors that belong to them.

        ``self.values`` stays the same parameter object, so optimizers still reference it. If nnz
        stays the same, the values are overwritten in place, and their gradient also moves. If nnz
        changes, the gradient is dropped. No other thread may call the layer at the same time.

        ``DSTScheduler`` moves optimizer state and running averages; without it, pass them in
        ``follow``. If nnz changes, build a new optimizer and start a new average. An optimizer
        whose moments have the former length raises an error in ``step()``.

        Args:
            pattern: the new pattern, of the same shape.
            source: int64 ``(pattern.nnz,)``: for each new active weight, the index of the old
                weight whose value it keeps, or -1 to start at 0.
            follow: tensors with one entry for each old active weight, such as an optimizer's
                moments. They change in the same way as ``values``.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or range.
            RuntimeError: the layer was created in ``torch.inference_mode()`` and is changed outside
                it; its values are computed by pruning or a parametrization; or another layer shares
                their memory.
            NotImplementedError: the values are sharded, or in shared memory.

        After an error, everything is unchanged.

        Example:
            >>> from sparseconv import SparseConv1d
            >>> layer = SparseConv1d(1, 1, 3, pattern=KernelCSR.full((1, 1, 3)))
            >>> ages = torch.tensor([7, 8, 9])
            >>> last = KernelCSR.from_positions(torch.tensor([0, 2]), (1, 1, 3))
            >>> layer.rewire(last, torch.tensor([-1, 2]), follow=[ages])
            >>> ages
            tensor([0, 9])
        """
        self.prepare_rewire(pattern, source, follow)()

    def prepare_rewire(
        self, pattern: KernelCSR, source: Tensor, follow: Sequence[Tensor] = ()
    ) -> Callable[[], None]:
        """Check and prepare ``rewire``, and return the function that performs it."""
        check_pattern(pattern, self._pattern.shape, self.groups)
        # The CPU would have to wait for a pattern that an update on a GPU makes, so do not read it.
        kept = not pattern.only_on_gpu and pattern == self._pattern
        check_movable(self, same_pattern=kept, nnz=pattern.nnz)
        if source.shape != (pattern.nnz,) or not (
            pattern.only_on_gpu
            or not pattern.nnz
            or -1 <= int(source.min()) <= int(source.max()) < self.pattern.nnz
        ):
            raise ValueError(
                f"source must be an int64 tensor of shape ({pattern.nnz},) that contains -1 or "
                f"indices below {self.pattern.nnz}, but got {source}"
            )
        if any(tensor.shape != self.values.shape for tensor in follow):
            shapes = [list(tensor.shape) for tensor in follow]
            raise ValueError(
                f"the tensors in follow must have shape {list(self.values.shape)}, but got {shapes}"
            )
        tensors: list[Tensor] = [self.values, *follow]
        if self.values.grad is not None:
            tensors.append(self.values.grad)
        with torch.inference_mode(False), torch.no_grad():
            moved = move([tensor.detach() for tensor in tensors], source)

        def rewire() -> None:
            self._adopt(pattern)
            for tensor, content in zip(tensors, moved, strict=True):
                if tensor.shape == content.shape:
                    tensor.copy_(content)
                else:
                    tensor.data = content
            self._memory = memory_of(self.values)
            self._mark_seen()

        return rewire

    @torch.no_grad()
    def _adopt(self, pattern: KernelCSR, in_place: bool = True) -> None:
        """Write a checked pattern to the buffers; if nnz changes, the values become 0.

        State dicts that share the memory of the values and the indices see both change. If the
        memory of the values is another one by now, so is that of the indices.
        """
        check_mode(self.values)
        device, dtype = self.values.device, self.values.dtype
        with torch.inference_mode(False):  # inference tensors could not be trained later
            own_tag = new_tag(pattern)
            if are_shared(self.values) and pattern != self._pattern:  # others keep theirs
                self.values.data = self.values.detach().clone()
            if self.values.shape != (pattern.nnz,):
                watch_optimizers(self.values)
                # A live graph remembers the old length for the next backward pass. A detour
                # through another dtype makes torch forget it.
                self.values.grad = None
                detour = torch.float32 if dtype == torch.float64 else torch.float64
                fresh = torch.zeros(pattern.nnz, device=device, dtype=dtype)
                self.values.data = torch.empty(pattern.nnz, device=device, dtype=detour)
                self.values.data = fresh
            held = [self._buffers.get(name) for name in _BUFFERS]
            arrays = (*pattern.anywhere(), own_tag)
            in_place &= self._memory == memory_of(self.values) and all(
                old is not None and old.shape == new.shape and old.device == device
                for old, new in zip(held, arrays, strict=True)
            )
            for name, old, new in zip(_BUFFERS, held, arrays, strict=True):
                if in_place and old is not None and not old.is_inference():
                    old.copy_(new)
                else:
                    copied = new.to(device, copy=True)
                    self.register_buffer(name, copied, persistent=name in INDICES)
        self._pattern, self._own_tag = pattern, own_tag
        self._memory = memory_of(self.values)

    def _apply(self, fn: Any, recurse: bool = True) -> PatternedModule:
        self._check_tag()
        before: dict[str, Any] = {name: self._buffers[name] for name in _BUFFERS}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new: Any = self._buffers[name]
            if new.dtype != torch.int32 or new.is_inference():
                source = new if new.dtype == torch.int32 else old
                with torch.inference_mode(False):
                    self._buffers[name] = source.to(new.device, copy=True)
        tag, former = self.pattern_tag, before["pattern_tag"]
        moved = former is self._seen[2] and tag is not former and not tag.is_meta
        if moved and not former.is_meta and _equal(tag, former):  # not after to_empty()
            self._seen = None, None, tag, -1, tag._version
        if self.dense_probe is not None:  # keep the object that the scheduler knows
            self.dense_probe.grad = None
            self.dense_probe.data = new_probe(self._pattern.shape, self.values).data
        return self

    def _check_tag(self) -> None:
        """Read the buffers if all were written to, because a copy of them has no versions."""
        tag = self._buffers["pattern_tag"]
        if tag is not None and tag is self._seen[2] and tag._version != self._seen[4]:
            with suppress(RuntimeError):  # the next use raises it
                self._read()

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        seen, pattern = self._seen, self.pattern
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if holds_values(self):
            give((self.col_indices, destination[f"{prefix}col_indices"]), pattern, self.values)
        # Writes to a state dict may not count as versions (broadcasts, NumPy), so read again.
        self._seen = seen if seen is _UNSEEN else (*self._seen[:3], -1, self._seen[4])
        metadata = getattr(destination, "_metadata", {})
        if prefix[:-1] in metadata:  # always in torch's own calls
            metadata[prefix[:-1]]["shape"] = pattern.shape  # the entries may fit other shapes too

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load all of the layer's own entries, or none."""
        hooks, self._load_state_dict_pre_hooks = self._load_state_dict_pre_hooks, OrderedDict()
        try:
            for hook in hooks.values():  # before reading, because hooks may rename entries
                hook(state_dict, prefix, *rest)
            self._load_entries(state_dict, prefix, *rest)
        finally:
            self._load_state_dict_pre_hooks = hooks

    def _load_entries(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        metadata, _, _, _, error_msgs = rest
        found = own_entries(self, state_dict, prefix)
        bias = self._parameters.get("bias")  # None also if it is parametrized
        if not found:  # the layer's own entries are missing; a subclass may have others
            super()._load_from_state_dict(state_dict, prefix, *rest)
            return
        assign = bool(metadata.get("assign_to_params_buffers"))
        try:
            pattern, loaded = read_layer(self, found, self._pattern, bias is not None, metadata)
            kept = pattern == self._pattern
            if holds_values(self):
                if "values" in found:
                    check_copied(found, pattern)
                if not (kept or assign or are_shared(self.values)):
                    check_alone(self, pattern.nnz)
                self._adopt(pattern, in_place=not assign)
        except (TypeError, ValueError, RuntimeError) as error:
            error_msgs.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")
            return
        if not kept:
            self.values.grad = None
        left = {name: v for name, v in state_dict.items() if name.removeprefix(prefix) not in found}
        for name in INDICES:
            indices: Any = self._buffers[name]
            if assign:
                indices = found[name] if name in found else indices.to(loaded["values"].device)
            loaded[name] = indices
        left |= {prefix + name: tensor for name, tensor in loaded.items()}
        super()._load_from_state_dict(left, prefix, *rest)
        self._memory = memory_of(self.values)
        if assign:
            self._read()
        else:
            self._mark_seen()

    def __prepare_scriptable__(self) -> NoReturn:  # which torch.jit.script calls
        raise NotImplementedError(
            f"torch.jit.script cannot compile a {type(self).__name__}; use torch.export.export or "
            "torch.jit.trace, or script sparseconv.to_dense(model)"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Omit the probe from copies and pickles; a copied scheduler creates a new one."""
        self._check_tag()
        return {**self.__dict__, "dense_probe": None, "_seen": _UNSEEN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if not (tag := self.pattern_tag).is_inference():
            self._seen = None, None, tag, -1, tag._version

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "pattern":
            raise AttributeError(
                "pattern cannot be assigned, because the values must move with it; call "
                "set_pattern(pattern)"
            )
        if name in INDICES and (value is None or isinstance(value, nn.Parameter)):
            raise RuntimeError(
                f"{name} is a buffer, so it must be an int32 tensor, but got "
                f"{type(value).__name__}; to change the pattern, call set_pattern(pattern), or "
                "assign tensors to values and both indices"
            )
        if name == "parametrizations" and type(value) is nn.ModuleDict:  # torch's, still empty
            value = Parametrizations(dict(value.items()))
        super().__setattr__(name, value)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.equal(other.to(one.device))
