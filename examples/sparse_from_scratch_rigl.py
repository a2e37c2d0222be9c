# %% [markdown]
# # Sparse from scratch with RigL
#
# A small CNN is trained on GunPoint with 10 % of its weights; dense weights are never created.
# Before each update of the pattern, RigL computes the dense gradient, and grows weights where the
# gradient is largest. For comparison, the same network is trained with a static pattern and with
# random growth.
#
# In a copy of the repository, run it with `.venv/bin/python` after `make demo`, or after the three
# `pip install` commands in README. With `SPARSECONV_QUICK=1`, it finishes within seconds.

# %%
import os
import time

import torch
import torch.nn.functional as F
from torch import nn

import sparseconv as sc
from sparseconv import datasets

QUICK = bool(os.environ.get("SPARSECONV_QUICK"))
EPOCHS, CHANNELS = (2, 16) if QUICK else (60, 64)
DENSITY, KERNEL = 0.1, 31

data = datasets.load("GunPoint")
X, X_test = torch.from_numpy(data.X_train), torch.from_numpy(data.X_test)
y, y_test = torch.from_numpy(data.y_train), torch.from_numpy(data.y_test)


# %% [markdown]
# ## The network
# `SparseConv1d` replaces `nn.Conv1d`. The first layer has one input channel and few weights, so it
# is denser than the others, as RigL's authors advise.


# %%
def block(in_channels: int, density: float) -> list[nn.Module]:
    conv = sc.SparseConv1d(in_channels, CHANNELS, KERNEL, padding="same", density=density)
    return [conv, nn.BatchNorm1d(CHANNELS), nn.ReLU()]


def network() -> nn.Sequential:
    return nn.Sequential(
        *block(data.n_channels, 0.5),
        *block(CHANNELS, DENSITY),
        *block(CHANNELS, DENSITY),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(CHANNELS, len(data.classes)),
    )


# %% [markdown]
# ## Training
# There is one more line than for a dense network: `dst.step()` after `optimizer.step()`.


# %%
def train(grow: str) -> tuple[nn.Sequential, sc.DSTScheduler]:
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = -(-len(X) // 10)
    dst = sc.DSTScheduler(
        model, optimizer, update_every=2 * batches, end_step=3 * EPOCHS * batches // 4,
        prune_fraction=0.3, grow=grow,
    )  # fmt: skip
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(X)).split(10):
            optimizer.zero_grad()
            F.cross_entropy(model(X[rows]), y[rows]).backward()
            optimizer.step()
            dst.step()
    return model.eval(), dst


def accuracy(model: nn.Module) -> float:
    with torch.inference_mode():
        return (model(X_test).argmax(1) == y_test).double().mean().item()


for grow in ("static", "random", "gradient"):
    start = time.perf_counter()
    model, dst = train(grow)
    print(
        f"{grow:8}  test accuracy {accuracy(model):.3f}   {dst.updates} updates, "
        f"{dst.itop_rate():.1%} of the weights were active at some time   "
        f"{time.perf_counter() - start:.1f} s"
    )

# %% [markdown]
# ## What it saved
# Compare every sparse layer with the same layer made dense, on this machine and with this batch
# size.

# %%
print(sc.profile(model, X[:10], rounds=6 if QUICK else 30))

# %% [markdown]
# ## Use it
# BatchNorm is folded into the sparse convolutions; the result is an ordinary module.

# %%
fast = sc.optimize_for_inference(model)
print(f"optimised: test accuracy {accuracy(fast):.3f}")
torch.save(model.state_dict(), "rigl.pt")
print("weights and patterns are in rigl.pt")
