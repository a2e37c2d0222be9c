"""Define a module whose parameter ``values`` contains the active weights of a pattern."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sparseconv.core.pattern import KernelCSR
from sparseconv.nn.dense_gradient import new_probe
from sparseconv.nn.optimizers import watch_optimizers
from sparseconv.nn.pattern_buffers import INDICES, UNREAD, UNSEEN, WRITING, PatternBuffers
from sparseconv.nn.state import check_floats, own_entries, read_layer
from sparseconv.ops.checks import check_pattern_type


class PatternedModule(PatternBuffers):
    """Hold a pattern and its values, and change, save and load them together."""

    values: nn.Parameter
    groups: int

    def __init__(self) -> None:
        super().__init__()
        # Set by DSTScheduler for a step; see `probed`. In a class, torch.compile would trace anew.
        self.dense_probe: Tensor | None = None

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
        changes, the gradient is dropped. No other thread may call the layer at the same time, and
        no other layer, nor another process, may use the same values: they would keep their pattern.

        ``DSTScheduler`` moves optimizer state and running averages; without it, pass them in
        ``follow``. If nnz changes, build a new optimizer and start a new average.

        Args:
            pattern: the new pattern, of the same shape.
            source: int64 ``(pattern.nnz,)``: for each new active weight, the index of the old
                weight whose value it keeps, or -1 to start at 0.
            follow: tensors with one entry for each old active weight, such as an optimizer's
                moments. They change in the same way as ``values``.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or range.
            RuntimeError: the layer was created in ``torch.inference_mode()`` and is changed outside
                it; or its values are computed by pruning or a parametrization.
            NotImplementedError: the values are sharded.

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
        check_pattern(pattern, self._pattern.shape, self.groups)
        check_movable(self)
        if source.shape != (pattern.nnz,) or not (
            pattern.nnz == 0 or -1 <= int(source.min()) <= int(source.max()) < self.pattern.nnz
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
        self.prepare_rewire(pattern, source, follow)()

    def prepare_rewire(
        self, pattern: KernelCSR, source: Tensor, follow: Sequence[Tensor] = ()
    ) -> Callable[[], None]:
        """Return a function that performs ``rewire``, with checked arguments, and cannot fail."""
        tensors: list[Tensor] = [self.values, *follow]
        if self.values.grad is not None:
            tensors.append(self.values.grad)
        with torch.inference_mode(False), torch.no_grad():
            moved = move([tensor.detach() for tensor in tensors], source)
        adopt = self._adoption(pattern)

        def rewire() -> None:
            with WRITING:
                adopt()
                for tensor, content in zip(tensors, moved, strict=True):
                    if tensor.shape == content.shape:
                        tensor.copy_(content)
                    else:
                        tensor.data = content
                self._mark_seen()
                if not pattern.only_on_gpu:  # else it would wait
                    self._read_again()

        return rewire

    def _adopt(self, pattern: KernelCSR, in_place: bool = True) -> None:
        """Write a checked pattern to the buffers; if nnz changes, the values become 0.

        State dicts that share the memory of the values and the indices see both change.
        """
        self._adoption(pattern, in_place)()

    def _renew(self) -> None:
        """Write the pattern to buffers that may have no content, as after ``to_empty()``."""
        self._adopt(self._pattern)
        self._read_later(UNSEEN)

    @torch.no_grad()
    def _adoption(self, pattern: KernelCSR, in_place: bool = True) -> Callable[[], None]:
        """Return what ``_adopt`` does, as a function that needs no memory and so cannot fail."""
        values = self.values
        _check_mode(values)
        device, dtype = values.device, values.dtype
        fresh = forgotten = None
        with torch.inference_mode(False):  # inference tensors could not be trained later
            if values.shape != (pattern.nnz,):
                fresh = torch.zeros(pattern.nnz, device=device, dtype=dtype)
                # A live graph remembers the old length for the next backward pass. A detour
                # through another dtype makes torch forget it.
                detour = torch.float32 if dtype == torch.float64 else torch.float64
                forgotten = torch.empty(pattern.nnz, device=device, dtype=detour)
            held = [self._buffers.get(name) for name in INDICES]
            copies = [
                None if in_place and fresh is None and _has_room(old, new, device)
                else new.to(device, copy=True)
                for old, new in zip(held, pattern.indices_where_stored(), strict=True)
            ]  # fmt: skip

        def adopt() -> None:
            with torch.inference_mode(False), torch.no_grad():
                if forgotten is not None:
                    watch_optimizers(values)
                    values.grad = None
                    values.data = forgotten
                if fresh is not None:
                    values.data = fresh
                for name, new, copied in zip(
                    INDICES, pattern.indices_where_stored(), copies, strict=True
                ):
                    if copied is None:
                        self._buffers[name].copy_(new)  # type: ignore[union-attr]
                    else:
                        self.register_buffer(name, copied)
            self._pattern = pattern

        return adopt

    def _apply(self, fn: Any, recurse: bool = True) -> PatternedModule:
        self._check_overwritten()
        before: dict[str, Any] = {name: self._buffers[name] for name in INDICES}
        memory = _storage_of(self._parameters.get("values"))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Or else a state dict would keep the former values, but follow the indices.
        apart = _storage_of(self._parameters.get("values")) != memory
        for name, old in before.items():
            new: Any = self._buffers[name]
            if apart or new is not old:  # int32 and with a version, whatever `fn` makes
                with torch.inference_mode(False):
                    source = new if new.dtype == torch.int32 else old
                    self._buffers[name] = source.to(new.device, copy=True)
        unseen = self._seen[2] == UNSEEN or before["col_indices"].is_meta
        self._read_later(UNSEEN if unseen else UNREAD)
        if self.dense_probe is not None:  # keep the object that the scheduler knows
            self.dense_probe.grad = None
            self.dense_probe.data = new_probe(self._pattern.shape, self.values).data
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._check_overwritten()
        self._read_again()
        metadata = getattr(destination, "_metadata", {})
        if prefix[:-1] in metadata:  # always in torch's own calls
            # The entries may fit other shapes too.
            metadata[prefix[:-1]]["shape"] = self._pattern.shape

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load all of the layer's own entries, or none."""
        hooks, self._load_state_dict_pre_hooks = self._load_state_dict_pre_hooks, OrderedDict()
        try:
            for hook in hooks.values():  # before reading, because hooks may rename entries
                hook(state_dict, prefix, *rest)
            with WRITING:
                self._load_entries(state_dict, prefix, *rest)
        finally:
            self._load_state_dict_pre_hooks = hooks

    def _load_entries(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        metadata, _, _, _, error_msgs = rest
        found = own_entries(self, state_dict, prefix)
        has_bias = self._parameters.get("bias") is not None  # False also if it is parametrized
        if not found:  # the layer's own entries are missing; a subclass may have others
            super()._load_from_state_dict(state_dict, prefix, *rest)
            return
        assign = bool(metadata.get("assign_to_params_buffers"))
        try:
            holds, present = holds_values(self), self._pattern
            pattern, loaded = read_layer(self, found, present, has_bias, holds, metadata)
            kept = pattern == present
            if holds:
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
        self._check_overwritten()
        state = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "dense_probe": None, "_seen": (None, None, UNSEEN)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._read_later(UNREAD)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "parametrizations" and type(value) is nn.ModuleDict:  # torch's, still empty
            value = Parametrizations(dict(value.items()))
        super().__setattr__(name, value)


class Parametrizations(nn.ModuleDict):
    """Hold the parametrizations of a layer by tensor name.

    ``nn.ModuleDict`` rejects the name ``"values"``, but only after torch has removed the parameter.
    This class accepts it.
    """

    def add_module(self, name: str, module: nn.Module | None) -> None:
        if name == "values" and module is not None:
            self._modules[name] = module
        else:
            super().add_module(name, module)

    @property
    def values(self) -> Any:
        """Return the parametrizations of ``values``, or the method ``values`` if there are none."""
        held = self._modules.get("values")
        return super().values if held is None else held


def check_pattern(pattern: KernelCSR, shape: tuple[int, int, int], groups: int) -> None:
    """Reject all but a pattern of this shape whose blocks do not cross a group boundary."""
    check_pattern_type(pattern)
    if pattern.shape != shape:
        raise ValueError(
            f"pattern must have the weight's shape, here {shape}, but got {pattern.shape}"
        )
    rows, size = shape[0] // groups, pattern.block[0]
    if groups > 1 and rows % size:
        raise ValueError(
            f"a group of {rows} channels must consist of whole blocks, but a block has {size} "
            f"channels; choose a block size that divides {rows}, or block=1"
        )


def check_movable(layer: nn.Module) -> None:
    """Reject a layer whose values cannot follow a change of pattern."""
    values = layer._parameters.get("values")
    if values is None:
        raise RuntimeError(
            "the values of this layer are computed from other tensors, by pruning or a "
            "parametrization; call torch.nn.utils.prune.remove(layer, 'values') or "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'values') before changing "
            "the pattern"
        )
    if not holds_values(layer):
        raise NotImplementedError(
            "the values of this layer are sharded (FSDP), so its pattern cannot change: use "
            "DistributedDataParallel, or change the pattern before sharding"
        )
    _check_mode(values)


def holds_values(layer: nn.Module) -> bool:
    """Return whether the values are a parameter that lies entirely in this process."""
    values = layer._parameters.get("values")
    # FSDP2's parameters are DTensors; FSDP1 with use_orig_params marks its parameters.
    return type(values) is nn.Parameter and not hasattr(values, "_fsdp_flattened")


def _check_mode(values: Tensor) -> None:
    """Reject changes outside inference mode to values that were created in it."""
    if values.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            "a layer created in torch.inference_mode() can be changed only in that mode; create "
            "the layer outside it"
        )


def survivors(old: KernelCSR, new: KernelCSR) -> Tensor:
    """Return the ``source`` for ``move`` that keeps every weight that is active in both patterns.

    Example:
        >>> first, second = torch.tensor([1, 4]), torch.tensor([0, 4])
        >>> old, new = (KernelCSR.from_positions(at, (1, 1, 6)) for at in (first, second))
        >>> survivors(old, new)
        tensor([-1,  1])
    """
    old_at, new_at = old.positions(), new.positions()
    kept = torch.isin(new_at, old_at, assume_unique=True)
    return torch.searchsorted(old_at, new_at).where(kept, -1)


def move(tensors: Sequence[Tensor], source: Tensor) -> list[Tensor]:
    """Return the entries at the indices in ``source`` (see ``rewire``), and 0 for the index -1.

    Example:
        >>> move([torch.tensor([5.0, 6.0])], torch.tensor([-1, 0, -1]))
        [tensor([0., 5., 0.])]
    """
    old = source + 1  # indices after a 0 in front

    def moved(tensor: Tensor) -> Tensor:
        return torch.cat((tensor.new_zeros(1), tensor)).index_select(0, old.to(tensor.device))

    return [moved(tensor) for tensor in tensors]


def _storage_of(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.untyped_storage()._cdata


def _has_room(old: Tensor | None, new: Tensor, device: torch.device) -> bool:
    """Return whether a buffer can be overwritten with other indices."""
    fits = old is not None and old.shape == new.shape and old.device == device
    return fits and not old.is_inference()  # type: ignore[union-attr]
