"""Define a module whose parameter ``values`` contains the active weights of a pattern."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from sparseconv.core.pattern import KernelCSR
from sparseconv.nn.buffer_check import check_indices, check_tag, check_tag_in_graph, new_tag
from sparseconv.nn.dense_gradient import new_probe
from sparseconv.nn.live_state import LiveState, check_copied, same_memory
from sparseconv.nn.modules import Parametrizations
from sparseconv.nn.rewiring import (
    LAYERS,
    are_shared,
    check_alone,
    check_mode,
    check_movable,
    check_pattern,
    holds_values,
    move,
    survivors,
    watch_optimizers,
)
from sparseconv.nn.state import INDICES, check_floats, own_entries, read_layer

_NEVER_CHECKED: tuple[Any, int] = (None, -1)


class PatternedModule(nn.Module):
    """Hold a pattern and its values, and change, save and load them together."""

    values: nn.Parameter
    groups: int
    pattern_tag: Tensor
    _pattern: KernelCSR

    def __new__(cls, *_: Any, **__: Any) -> Self:  # also called for copies and by pickle
        layer = super().__new__(cls)
        LAYERS[id(layer)] = layer
        return layer

    def __init__(self) -> None:
        super().__init__()
        self._checked = _NEVER_CHECKED  # the tag that was checked last, and its version
        self.dense_probe: Tensor | None = None  # set by DSTScheduler for a step; see `probed`
        self._live: Any = None  # the LiveState, once there is a state dict

    @property
    def pattern(self) -> KernelCSR:
        """Return the pattern; raise RuntimeError if the values might not belong to it."""
        tag: Any = self._buffers["pattern_tag"]
        checked = self._checked
        if is_dynamo_compiling():
            check_tag_in_graph(tag, self._own_tag)
        elif tag is not checked[0] or tag._version != checked[1]:
            self._checked = check_tag(tag, self._own_tag, checked)
        return self._pattern

    @property
    def crow_indices(self) -> Tensor:
        """Return a copy of ``pattern.crow_indices`` on the layer's device."""
        return self._pattern.crow_indices.to(self.values.device, copy=True)

    @property
    def col_indices(self) -> Tensor:
        """Return a copy of ``pattern.col_indices`` on the layer's device."""
        return self._pattern.col_indices.to(self.values.device, copy=True)

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
        check_movable(self, same_pattern=kept)
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
            if not kept and self._live is not None:
                self._live.move(self.values, pattern)

        return rewire

    @torch.no_grad()
    def _adopt(self, pattern: KernelCSR) -> None:
        """Install a checked pattern; if nnz changes, the values become 0."""
        check_mode(self.values)
        device, dtype = self.values.device, self.values.dtype
        with torch.inference_mode(False):  # inference tensors could not be trained later
            own_tag = new_tag(pattern)
            tag = own_tag.to(device, copy=True)
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
        self._pattern, self._own_tag = pattern, own_tag
        if pattern.only_on_gpu and self.pattern_tag.device == tag.device:
            self.pattern_tag.copy_(tag)  # the check of a new tag would read it
            self._checked = self.pattern_tag, self.pattern_tag._version
        else:
            self.register_buffer("pattern_tag", tag, persistent=False)
        self._copy_pattern()

    def _live_indices(self) -> dict[str, Tensor]:
        with torch.inference_mode(False):
            fresh = {name: getattr(self, name) for name in INDICES}
        if not holds_values(self) or self.values.is_meta:
            return fresh  # the pattern cannot change
        live: Any = self._live
        kept = live is not None and same_memory(live.values, self.values)
        if not kept or live.pattern != self._pattern:
            live = self._live = LiveState(self.values, self._pattern)
        return live.give(fresh)  # type: ignore[no-any-return]

    def _copy_pattern(self) -> None:
        if self.values.is_cuda:  # now, because a compiled or captured graph cannot do it later
            self._pattern.on(self.values.device)

    def _apply(self, fn: Any, recurse: bool = True) -> PatternedModule:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._copy_pattern()
        if self._live is not None and not same_memory(self._live.values, self.values):
            self._live = None  # state dicts keep the former network
        if self.dense_probe is not None:  # keep the object that the scheduler knows
            self.dense_probe.grad = None
            self.dense_probe.data = new_probe(self._pattern.shape, self.values).data
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update((prefix + name, t) for name, t in self._live_indices().items())
        metadata = getattr(destination, "_metadata", {})
        if prefix[:-1] in metadata:  # always in torch's own calls
            # Entries may fit other shapes too. Reading the pattern also checks the tag.
            metadata[prefix[:-1]]["shape"] = self.pattern.shape

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
        metadata, strict, missing_keys, _, error_msgs = rest
        found = own_entries(self, state_dict, prefix)
        bias = self._parameters.get("bias")  # None also if it is parametrized
        if not found:  # the layer's own entries are missing; a subclass may have others
            super()._load_from_state_dict(state_dict, prefix, *rest)
            missing_keys.extend(prefix + name for name in INDICES if strict)
            return
        try:
            pattern, loaded = read_layer(self, found, self._pattern, bias is not None, metadata)
            kept = pattern == self._pattern
            if "values" in found and holds_values(self):
                check_copied(self._live, self.values, found, pattern, kept)
            if metadata.get("assign_to_params_buffers"):
                self._live = None  # state dicts keep the former network
            elif holds_values(self) and not (kept or are_shared(self.values)):
                check_alone(self)  # layers that share the memory keep their pattern
            self._adopt(pattern)
        except (TypeError, ValueError, RuntimeError) as error:
            error_msgs.append(f"{prefix.removesuffix('.') or type(self).__name__}: {error}")
            return
        if not kept:
            self.values.grad = None
        left = {name: v for name, v in state_dict.items() if name.removeprefix(prefix) not in found}
        left |= {prefix + name: tensor for name, tensor in loaded.items()}
        super()._load_from_state_dict(left, prefix, *rest)
        if not kept and self._live is not None:
            self._live.move(self.values, pattern)
        if self.pattern_tag.device != self.values.device:  # assign=True
            tag = self._own_tag.to(self.values.device, copy=True)
            self.register_buffer("pattern_tag", tag, persistent=False)

    def __prepare_scriptable__(self) -> NoReturn:  # which torch.jit.script calls
        raise NotImplementedError(
            f"torch.jit.script cannot compile a {type(self).__name__}; use torch.export.export or "
            "torch.jit.trace, or script sparseconv.to_dense(model)"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Omit the probe from copies and pickles; a copied scheduler creates a new one."""
        own = {"dense_probe": None, "_live": None, "_checked": _NEVER_CHECKED}
        return {**self.__dict__, **own}

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "pattern":
            raise AttributeError(
                "pattern cannot be assigned, because the values must move with it; call "
                "set_pattern(pattern)"
            )
        if name in INDICES:  # torch.func.functional_call, with a state dict
            check_indices(value, getattr(self._pattern, name))
            return
        if name == "parametrizations" and type(value) is nn.ModuleDict:  # torch's, still empty
            value = Parametrizations(dict(value.items()))
        super().__setattr__(name, value)
