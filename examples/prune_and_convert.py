# %% [markdown]
# # Prune and convert your CNN
#
# A dense CNN is trained on GunPoint and pruned with `torch.nn.utils.prune`, as you may have done
# with your own network. `sc.convert` makes layers sparse if they are measured to be faster; the
# network is then fine-tuned, deployed, and converted back to torch's own layers.
#
# In a copy of the repository, run it with `.venv/bin/python` after `make demo`, or after the three
# `pip install` commands in README. With `SPARSECONV_QUICK=1`, it finishes within seconds.

# %%
import os

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import sparseconv as sc
from sparseconv import datasets

QUICK = bool(os.environ.get("SPARSECONV_QUICK"))
EPOCHS = 1 if QUICK else 20
CHANNELS = 8 if QUICK else 32

data = datasets.load("GunPoint")
X, X_test = torch.from_numpy(data.X_train), torch.from_numpy(data.X_test)
y, y_test = torch.from_numpy(data.y_train), torch.from_numpy(data.y_test)

# %% [markdown]
# ## Your network
# This is plain torch. Layers may be anywhere: in lists, dictionaries or other modules, or used in
# two places.


# %%
def block(inputs: int, kernel_size: int) -> nn.Sequential:
    conv = nn.Conv1d(inputs, CHANNELS, kernel_size, padding="same", bias=False)
    return nn.Sequential(conv, nn.BatchNorm1d(CHANNELS), nn.ReLU())


torch.manual_seed(0)
model = nn.Sequential(
    block(data.n_channels, 15),
    block(CHANNELS, 31),
    block(CHANNELS, 31),
    nn.AdaptiveAvgPool1d(1),
    nn.Flatten(),
    nn.Linear(CHANNELS, len(data.classes)),
)


def train(model: nn.Module, epochs: int, *, pattern_updates: bool = False) -> None:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    dst = None
    if pattern_updates:
        steps = epochs * -(-len(X) // 10)
        dst = sc.DSTScheduler(model, optimizer, update_every=max(1, steps // 10), end_step=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(X)).split(10):
            optimizer.zero_grad()
            F.cross_entropy(model(X[rows]), y[rows]).backward()
            optimizer.step()
            if dst is not None:
                dst.step()


def accuracy(model: nn.Module) -> float:
    model.eval()
    with torch.inference_mode():
        return (model(X_test).argmax(1) == y_test).double().mean().item()


train(model, EPOCHS)
print(f"dense: test accuracy {accuracy(model):.3f}")

# %% [markdown]
# ## Prune it
# Remove the smallest 90 % of every convolution's weights. This does not make the network faster:
# torch now multiplies a dense weight by a mask.

# %%
for layer in model.modules():
    if isinstance(layer, nn.Conv1d):
        prune.l1_unstructured(layer, "weight", amount=0.9)
print(f"pruned: test accuracy {accuracy(model):.3f}")

# %% [markdown]
# ## Convert it
# The masks say which weights are active. Layers are timed with the example input: pass a batch as
# in training, or `training=False` and a batch as in deployment. The report has a line for every
# convolution, including those that stay dense. `model` itself is not changed.

# %%
sparse, report = sc.convert(model.train(), example_input=X[:10])
print(report)
if not any(layer.sparse for layer in report.layers):  # a busy machine, or a tiny network
    sparse, report = sc.convert(model, max_density=0.2)
difference = (sparse.eval()(X_test) - model.eval()(X_test)).abs().max().item()
print(f"converted: test accuracy {accuracy(sparse):.3f}, outputs differ by {difference:.1e}")

# %% [markdown]
# ## Fine-tune it
# The optimizer is built after the conversion, because it must receive the new parameters. A
# `DSTScheduler` moves weights to better positions; omit it to keep the pattern from pruning.

# %%
train(sparse, EPOCHS, pattern_updates=True)
print(f"fine-tuned: test accuracy {accuracy(sparse):.3f}")

# %% [markdown]
# ## Deploy it
# Fuse the network for inference, or convert it to torch's own layers for a tool that supports no
# others. Both compute the same results as the sparse network.

# %%
fast, dense = sc.optimize_for_inference(sparse), sc.to_dense(sparse)
print(f"fused: test accuracy {accuracy(fast):.3f}")
print(f"dense again: test accuracy {accuracy(dense):.3f}")
torch.save(sparse.state_dict(), "sparse.pt")
torch.save(dense.state_dict(), "dense.pt")
sizes = [os.path.getsize(name) / 1024 for name in ("sparse.pt", "dense.pt")]
print("sparse.pt: {:.0f} KiB, dense.pt: {:.0f} KiB".format(*sizes))
