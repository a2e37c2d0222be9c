"""The networks that a plan can name, their cost, and moments of grown weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bench.masked import masked_copy
from benchmarks.paper.archives import Shape
from sparseconv.dst import DSTScheduler
from sparseconv.models import DSN, LITE, OSCNN, Ensemble, InceptionTime, ResNet
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.patterned import move, survivors

# Of LITE's even kernels, as published; torch pads a copy of their input.
warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "DSN": DSN,
    "ResNet": ResNet,
    "InceptionTime": InceptionTime,
    "OS-CNN": OSCNN,
    "LITE": LITE,
}
ROCKETS = ("ROCKET", "MiniROCKET")  # random kernels, which are not a network


def build(model: str, arguments: Mapping[str, Any], shape: Shape) -> nn.Module:
    """Build a network for data of this shape, with weights from torch's global generator."""
    more = {"n_timepoints": shape.n_timepoints} if model == "OS-CNN" else {}  # its longest kernels
    return NETWORKS[model](shape.n_channels, shape.n_classes, **more, **arguments)


def member_seed(options: Mapping[str, Any], seed: int, member: int) -> int:
    """Return the seed of an ensemble's member, which no other job of its run has.

    The first member for seed 0 equals the single network for seed 0.
    """
    return int(seed * options["members"] + member)


def first_model(options: Mapping[str, Any], seed: int, shape: Shape) -> nn.Module:
    """Build a job's untrained network or ensemble; equal seeds yield equal weights."""
    networks = []
    for member in range(options["members"]):
        torch.manual_seed(member_seed(options, seed, member))
        network = build(options["model"], options["network"], shape)
        networks.append(masked_copy(network) if options["weights"] == "masked dense" else network)
    return Ensemble(networks) if len(networks) > 1 else networks[0]


def multiply_adds(model: nn.Module, shape: Shape) -> int:
    """Count the multiply-adds of active weights in one prediction in eval mode."""
    if isinstance(model, Ensemble):
        return sum(multiply_adds(member, shape) for member in model.members)
    if isinstance(model, DSN) and model.sparse_layers():
        return model.cost(shape.n_timepoints).macs_executed
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, shape.n_channels, shape.n_timepoints))
    return int(counter.get_total_flops()) // 2


class MomentsDST(DSTScheduler):
    """A ``DSTScheduler`` that starts grown weights with different Adam moments.

    Args:
        moments: with ``"mean"``, the first moment of a grown weight begins at zero, and the second
            at the mean over its region's active weights. With ``"corrected"``, both begin at zero,
            and Adam's bias correction counts the steps since the weight was grown.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, moments: str, **settings: Any
    ) -> None:
        super().__init__(model, optimizer, **settings)
        self.moments = moments
        self.layers = [m for m in model.modules() if isinstance(m, SparseConv1d)]
        self.ages = [torch.zeros_like(layer.values.detach()) for layer in self.layers]
        if moments == "corrected":
            optimizer.register_step_post_hook(lambda optimizer, *_: self._correct(optimizer))

    @torch.no_grad()
    def step(self) -> bool:
        before = [layer.pattern for layer in self.layers]
        moved = super().step()
        for index, (layer, old) in enumerate(zip(self.layers, before, strict=True)):
            if layer.pattern is old:
                continue
            state = self._optimizer.state[layer.values]
            grown = (layer.values == 0) & (state["exp_avg"] == 0) & (state["exp_avg_sq"] == 0)
            (self.ages[index],) = move([self.ages[index]], survivors(old, layer.pattern))
            self.ages[index][grown] = 0
            if self.moments == "mean":
                _fill_with_means(layer, state["exp_avg_sq"], grown)
        return moved

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "ages": [age.clone() for age in self.ages]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        pairs = zip(state_dict["ages"], self.layers, strict=True)
        self.ages = [age.clone().to(layer.values.device) for age, layer in pairs]

    @torch.no_grad()
    def _correct(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace each weight's step with the step for the weight's age."""
        (group,) = optimizer.param_groups
        (beta1, beta2), lr, eps = group["betas"], float(group["lr"]), group["eps"]
        for layer, age in zip(self.layers, self.ages, strict=True):
            state = optimizer.state[layer.values]
            age += 1
            first, second, steps = state["exp_avg"], state["exp_avg_sq"], state["step"]

            def change(steps: Tensor) -> Tensor:
                root = (second / (1 - beta2**steps)).sqrt_() + eps  # noqa: B023 (called here)
                return lr * first / (1 - beta1**steps) / root  # noqa: B023

            layer.values += change(steps) - change(age)


def _fill_with_means(layer: SparseConv1d, moment: Tensor, grown: Tensor) -> None:
    positions = layer.pattern.positions().to(moment.device)
    channels = positions // (layer.pattern.shape[1] * layer.pattern.shape[2])
    for (first, end), _ in layer.regions:
        inside = (channels >= first) & (channels < end)
        old = moment[inside & ~grown]
        if len(old):
            moment[inside & grown] = old.mean()
