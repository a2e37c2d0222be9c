"""Schedule dynamic sparse training: prune the smallest weights and grow the same number."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.core.checks import count, integer, number
from sparseconv.core.files import ctrl_c_waits
from sparseconv.core.modules import check_module
from sparseconv.dst import checks
from sparseconv.dst.update import (
    PRUNE_FLOOR,
    PRUNE_FRACTION,
    Change,
    EverActive,
    Growth,
    as_regions,
    check_fractions,
    check_growth,
    check_regions,
    cosine_decay,
    moved,
    stays_on_gpu,
)
from sparseconv.nn.dense_gradient import new_probe
from sparseconv.nn.optimizers import OptimizerState
from sparseconv.nn.pattern_buffers import checksum
from sparseconv.nn.sparse_layer import SparseLayer


class DSTScheduler:
    """Change which weights of a model's sparse layers are active during training.

    Call ``step()`` after each ``optimizer.step()``. Every ``update_every``-th call, up to the
    ``end_step``-th, runs ``prune_and_grow`` on each layer and keeps the number of active weights in
    each region. Call number t moves the share ``cosine_decay(prune_fraction, prune_floor, t,
    decay_steps)`` of them. All changes are made in place; ``values`` stays the same parameter. A
    surviving weight keeps its value, its gradient and its elementwise optimizer state (any tensor
    shaped like ``values``); a grown weight starts with zeros. If an update raises an error, nothing
    is changed. Frozen layers (``values`` without ``requires_grad``) keep their patterns: freeze
    layers that do not train.

    ``grow="gradient"`` needs the dense gradient, which is computed only in the training step before
    an update: the sum over all ``backward()`` calls since the last ``dst.step()``. A layer without
    one, or whose gradient is 0, keeps its pattern in that update. With ``torch.distributed``, every
    rank must construct and step a scheduler. docs/training.md explains both.

    An update on a GPU does not make the CPU wait, so ``step()`` returns True even if nothing moved.

    Args:
        model: a module with at least one sparse layer; ``layer.regions`` defines where the
            layer's weights may move.
        optimizer: must train the ``values`` of every such layer that is not frozen.
        update_every, end_step, decay_steps: counted in calls to ``step()``; ``decay_steps`` is
            ``end_step`` by default.
        prune_fraction, prune_floor: shares of active weights to move at the start and from
            ``decay_steps`` on; ``0 <= prune_floor <= prune_fraction <= 1``.
        grow: ``"random"`` (SET, DSN), ``"gradient"`` (RigL) or ``"static"`` (never change).
        seed: seed of the scheduler's generator; torch's global generator is not used.
        averages: running averages of the model (``torch.optim.swa_utils.AveragedModel`` or other
            averaged copies). Their weights move with the model's; grown weights start at 0.
        process_group: the ranks that train this model; ``"default"`` means torch's default group if
            there is one, and None this process alone.

    Attributes:
        step_count: the number of calls to ``step()`` so far.
        updates: the number of calls that ran an update.

    Raises:
        TypeError, ValueError: arguments of the wrong type, out of range or inconsistent; no sparse
            layer; invalid regions.
        RuntimeError: ``values`` that are computed or belong to two layers; ranks with different
            settings or patterns.
        NotImplementedError: ``values`` that are sharded; an optimizer whose state cannot follow
            moved weights.

    Example:
        >>> import torch, sparseconv as sc
        >>> layer = sc.SparseConv1d(4, 8, 9, density=0.2)
        >>> optimizer = torch.optim.Adam(layer.parameters())
        >>> dst = sc.DSTScheduler(layer, optimizer, update_every=2, end_step=100)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     layer(torch.randn(2, 4, 30)).square().mean().backward()
        ...     optimizer.step()
        ...     print(dst.step())
        False
        True
        False
        >>> dst.itop_rate() > layer.pattern.density
        True

    Source: Xiao et al. 2022 (DSN), Algorithm 1; Evci et al. 2020 (RigL), section 3 (schedule); Liu
    et al. 2021 (ITOP).
    """

    __module__ = "sparseconv"  # the name in pickles and reprs

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        update_every: int,
        end_step: int,
        prune_fraction: float = PRUNE_FRACTION,
        prune_floor: float = PRUNE_FLOOR,
        decay_steps: int | None = None,
        grow: Growth = "random",
        seed: int = 0,
        averages: nn.Module | Sequence[nn.Module] = (),
        process_group: torch.distributed.ProcessGroup | str | None = "default",
    ) -> None:
        check_module(model)
        self.update_every = count("update_every", update_every)
        self.end_step = count("end_step", end_step)
        self.decay_steps = count("decay_steps", end_step if decay_steps is None else decay_steps)
        self.prune_fraction = number("prune_fraction", prune_fraction)
        self.prune_floor = number("prune_floor", prune_floor)
        check_fractions(self.prune_fraction, self.prune_floor)
        check_growth(grow)
        self.grow = grow
        self.seed = integer("seed must be an int", seed)
        self.step_count = self.updates = 0
        self._optimizer = optimizer
        self._generator = torch.Generator("cpu").manual_seed(self.seed)
        self._layers = checks.sparse_layers(model)
        if not self._layers:
            raise ValueError(
                "model must contain at least one SparseConv1d, but it has none; create one from "
                "an nn.Conv1d with SparseConv1d.from_dense(conv)"
            )
        self._copies = checks.copies_of(self._layers, averages)
        self._ranks = checks.Ranks(process_group)
        self._ranks.agree(self._check_layers, self._fingerprint)
        self._regions = {n: check_regions(x.regions, x.pattern) for n, x in self._layers.items()}
        self._ever_active = EverActive(self._layers)
        self._probes: dict[str, Tensor] = {}
        weakref.finalize(self, _take_back, self._layers, self._probes)
        self._watch_next_step()

    def __getstate__(self) -> dict[str, Any]:
        """Keep the gradients seen so far, because the probe is not copied with a layer."""
        probes = {n: probe.grad for n, probe in self._probes.items()}
        return {**self.__dict__, "_probes": probes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "_probes": {}})
        weakref.finalize(self, _take_back, self._layers, self._probes)
        self._watch_next_step()
        for name, gradient in state["_probes"].items():
            self._probes[name].grad = gradient

    def __repr__(self) -> str:
        nnz = sum(layer.pattern.nnz for layer in self._layers.values())
        settings = ", ".join(f"{key}={value!r}" for key, value in self._hyperparameters().items())
        return (
            f"DSTScheduler({len(self._layers)} layers, {nnz} active weights, {settings}, "
            f"step_count={self.step_count}, updates={self.updates})"
        )

    @property
    def prune_fraction_now(self) -> float:
        """Return the share of active weights that an update in the latest ``step()`` would move."""
        return 0.0 if self.grow == "static" else self._prune_fraction_at(self.step_count)

    def itop_rate(self) -> float:
        """Return the share of all weights of the sparse layers that have ever been active.

        Patterns set by other code count if they lasted until an update or this call.
        """
        return self._ever_active.rate()

    @torch.no_grad()
    def step(self) -> bool:
        """Count one optimizer step and, if an update is due, prune and grow.

        With gradient growth, the update is skipped if a dense gradient is infinite or NaN, for
        example when ``torch.amp.GradScaler`` skips the optimizer's step.

        Returns:
            True if an update was made.

        Raises:
            RuntimeError: gradient growth without a backward pass through any layer since the last
                ``step()``; a rank that failed or chose a different pattern.
            ValueError, RuntimeError, NotImplementedError: as in the constructor.
        """
        if self.step_count == 0 and self.grow != "static":  # many optimizers have no state before
            self._ranks.agree(self._check_layers, self._fingerprint)
        changes = self._plan() if self._is_due(self.step_count + 1) else []
        probes = self._new_probes(self.step_count + 2)  # before anything changes: it may fail
        # An interrupted update would leave a wrong model.
        with ctrl_c_waits() if changes else nullcontext():
            if changes:
                self._ever_active.record()  # patterns that others may have set
                for change in changes:
                    for rewire in change.rewire:
                        rewire()
                    self._ever_active.add(change.name, change.pattern)
                self.updates += 1
            self.step_count += 1
        self._watch_next_step(probes)
        return bool(changes)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, except that of the model and the optimizer."""
        return {
            "hyperparameters": self._hyperparameters(),
            "step_count": self.step_count,
            "updates": self.updates,
            "generator": self._generator.get_state(),
            "shapes": {name: layer.pattern.shape for name, layer in self._layers.items()},
            "ever_active": {n: bits.cpu().clone() for n, bits in self._ever_active.bits.items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from the ``state_dict()`` of a scheduler with these settings and layers."""
        own = self.state_dict()
        for key in ("hyperparameters", "shapes"):
            if state_dict[key] != own[key]:
                raise ValueError(
                    f"the state belongs to another scheduler: expected {key} {own[key]}, but got "
                    f"{state_dict[key]}; build the same model and scheduler as when it was saved"
                )
        counts = state_dict["step_count"], state_dict["updates"]
        bits = {name: state_dict["ever_active"][name].cpu().clone() for name in self._layers}
        self._generator.set_state(state_dict["generator"])  # the last that may fail
        self._ever_active.load(bits)
        self.step_count, self.updates = counts
        self._watch_next_step()

    def _hyperparameters(self) -> dict[str, Any]:
        names = ("update_every", "end_step", "prune_fraction", "prune_floor", "decay_steps")
        return {name: getattr(self, name) for name in (*names, "grow", "seed")}

    def _prune_fraction_at(self, step: int) -> float:
        return cosine_decay(self.prune_fraction, self.prune_floor, step, self.decay_steps)

    def _is_due(self, step: int) -> bool:
        return self.grow != "static" and step <= self.end_step and step % self.update_every == 0

    def _check_layers(self) -> OptimizerState:
        move = self.grow != "static"
        return checks.check_layers(self._layers, self._copies, self._optimizer, move)

    def _fingerprint(self, _: Any) -> dict[str, Any]:
        patterns = {name: checksum(layer.pattern) for name, layer in self._layers.items()}
        return {**self._hyperparameters(), "patterns": patterns}

    def _plan(self) -> list[Change]:
        """Compute the update of every layer; only the generator changes."""
        # What may fail on one rank comes first, for that rank misses the exchanges that follow.
        before = self._generator.get_state()
        try:
            state = self._ranks.agree(self._check_layers, lambda _: None)
            gradients = self._dense_gradients()
            return self._ranks.agree(partial(self._changes, state, gradients), _checksums)
        except BaseException:
            self._generator.set_state(before)
            raise

    def _changes(
        self, state: OptimizerState, gradients: Mapping[str, Tensor | None]
    ) -> list[Change]:
        """Return the updates of all layers, or none if a gradient (of all ranks) is not finite."""
        finite = [grad.isfinite().all() for grad in gradients.values() if grad is not None]
        share: Any = self._prune_fraction_at(self.step_count + 1)
        if finite and all(map(stays_on_gpu, finite)) and len({x.device for x in finite}) == 1:
            share = torch.stack(finite).all().double() * share
        elif not all(finite):
            return []
        training = [name for name, x in self._layers.items() if x.values.requires_grad]
        moving = training
        if self.grow == "gradient":
            moving = [name for name in training if gradients.get(name) is not None]
            if training and not moving:
                layers = [self._layers[name] for name in training]
                checks.check_backward(layers, self._optimizer, self.step_count)
        plans = (self._plan_layer(name, share, gradients.get(name), state) for name in moving)
        return [plan for plan in plans if plan is not None]

    def _dense_gradients(self) -> dict[str, Tensor | None]:
        """Return the gradients that any rank has seen, summed over all ranks."""
        totals = {name: probe.grad for name, probe in self._probes.items()}
        if self.grow != "gradient" or self._ranks.alone:
            return totals
        seen = self._ranks.gather([name for name, total in totals.items() if total is not None])
        for name in sorted(set().union(*seen)):
            # This rank's batch may not have used the layer. A clone, as a failed update is retried.
            probe = self._probes[name]
            own = probe if probe.grad is None else probe.grad
            totals[name] = self._ranks.sum(own.detach().clone().contiguous())
        return totals

    def _plan_layer(
        self, name: str, fraction: Any, dense_grad: Tensor | None, state: OptimizerState
    ) -> Change | None:
        layer = self._layers[name]
        if dense_grad is not None and not (stays_on_gpu(dense_grad) or dense_grad.any()):
            return None
        if as_regions(layer.regions) != self._regions[name]:
            self._regions[name] = check_regions(layer.regions, layer.pattern)
        pattern, source = moved(
            layer.pattern, layer.values, self._regions[name], fraction, self.grow, self._generator,
            dense_grad,
        )  # fmt: skip
        if pattern is layer.pattern:
            return None
        rewire = [layer.prepare_rewire(pattern, source, state.tensors_of(layer.values))]
        rewire += [copy.prepare_rewire(pattern, source) for copy in self._copies[name]]
        return Change(name, pattern, rewire)

    def _watch_next_step(self, probes: Mapping[str, Tensor] | None = None) -> None:
        """Discard the gradients seen so far; add probes to layers if the next step is an update."""
        probes = self._new_probes(self.step_count + 1) if probes is None else probes
        _take_back(self._layers, self._probes)
        for name, probe in probes.items():
            self._layers[name].dense_probe = self._probes[name] = probe

    def _new_probes(self, step: int) -> dict[str, Tensor]:
        due = self.grow == "gradient" and self._is_due(step)
        layers = self._layers.items() if due else ()
        return {name: new_probe(layer.pattern.shape, layer.values) for name, layer in layers}


def _checksums(changes: list[Change]) -> dict[str, int]:
    return {change.name: checksum(change.pattern) for change in changes}


def _take_back(layers: Mapping[str, SparseLayer], probes: dict[str, Tensor]) -> None:
    for name, probe in probes.items():
        if layers[name].dense_probe is probe:  # not another scheduler's
            layers[name].dense_probe = None
    probes.clear()


__test__ = {"DSTScheduler": DSTScheduler}  # for doctest, as its __module__ is sparseconv
