# %% [markdown]
# # A Dynamic Sparse Network on your own data
#
# Train a DSN on the series and labels in a `.npz` file, stop halfway, and resume with bit-identical
# results. Replace the cell "Data" with your own arrays.
#
# In a copy of the repository, run it with `.venv/bin/python` after `make demo`, or after the three
# `pip install` commands in README. With `SPARSECONV_QUICK=1`, it finishes within seconds.

# %%
import os

import numpy as np
import torch

import sparseconv as sc
from sparseconv import datasets
from sparseconv.training import Recipe, predict_log_proba, train

EPOCHS = 2 if os.environ.get("SPARSECONV_QUICK") else 40
rng = np.random.default_rng(0)

# %% [markdown]
# ## Data
# Series have two channels of 100 time steps. The classes differ only in which channel moves first,
# by 20 time steps, so kernels need a wide receptive field.


# %%
def make(n_cases: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.array(["first", "second"])[np.arange(n_cases) % 2]
    X = rng.normal(0, 0.3, (n_cases, 2, 100))  # (n_cases, n_channels, n_timepoints)
    for series, label in zip(X, labels, strict=True):
        start = rng.integers(10, 60)
        leader = int(label == "second")
        series[leader, start : start + 5] += 2
        series[1 - leader, start + 20 : start + 25] += 2
    return X, labels


X_train, y_train = make(60)
X_test, y_test = make(100)
np.savez("events.npz", X_train=X_train, y_train=y_train, X_test=X_test, y_test=y_test)
data = datasets.load("events.npz")  # or a folder with NAME_TRAIN.tsv and NAME_TEST.tsv

# %% [markdown]
# ## Training, stopped halfway
# A checkpoint is written after every epoch, atomically. Here, an exception simulates a power cut.


# %%
def network() -> sc.models.DSN:
    torch.manual_seed(0)
    return sc.models.DSN(data.n_channels, len(data.classes), nf=16, depth=3)


class PowerCutError(Exception):
    pass


def cut(history: list[dict]) -> None:
    if len(history) == EPOCHS // 2:
        raise PowerCutError


recipe = Recipe(epochs=EPOCHS, lr=1e-3, update_every_epochs=2)
arguments = data.X_train, data.y_train, recipe
try:
    train(network(), *arguments, out="events-run", verbose=False, on_epoch=cut)
except PowerCutError:
    print(f"stopped after epoch {EPOCHS // 2}")

# %% [markdown]
# ## Resumed
# Weights, pattern, optimizer, schedule and random numbers are restored, so the result is
# bit-identical to that of an uninterrupted run.

# %%
model = network()
result = train(model, *arguments, out="events-run", resume=True, verbose=False)
whole = network()
train(whole, *arguments, verbose=False)
for name, tensor in model.state_dict().items():
    assert torch.equal(tensor, whole.state_dict()[name]), name
print(f"resumed to epoch {len(result.history)}: bit-identical to an uninterrupted run")

# %% [markdown]
# ## The result

# %%
predicted = predict_log_proba(model, torch.from_numpy(data.X_test)).argmax(1).numpy()
print(f"test accuracy {(predicted == data.y_test).mean():.3f}")
cost = model.cost(data.n_timepoints)
print(f"{cost.params:,} parameters, {cost.params_dense:,} in the dense network")
print(f"{result.itop_rate:.1%} of its weights were active at some time")

# %% [markdown]
# ## As an estimator
# The same kind of network is also an estimator for aeon and scikit-learn.

# %%
classifier = sc.DSNClassifier(nf=8, depth=2, epochs=EPOCHS, lr=1e-3, random_state=0)
print(f"estimator: test accuracy {classifier.fit(X_train, y_train).score(X_test, y_test):.3f}")
