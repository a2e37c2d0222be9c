# %% [markdown]
# # From a .npz file to a C program
#
# In twenty lines, train a Dynamic Sparse Network on the series in a `.npz` file, export it as int8
# C code, compile it here, and check it on known series. Replace the first cell with your own
# arrays.
#
# In a copy of the repository, run it with `.venv/bin/python` after `make demo`, or after the three
# `pip install` commands in README. It needs a C compiler. With `SPARSECONV_QUICK=1`, it
# finishes within seconds.

# %%
import os
import shutil
import subprocess

import numpy as np

import sparseconv as sc
from sparseconv import datasets
from sparseconv.training import Recipe, train

rng, epochs = np.random.default_rng(0), 2 if os.environ.get("SPARSECONV_QUICK") else 60
y = np.arange(160) % 2
X = np.sin(np.linspace(0, 9, 80) * (1 + 0.3 * y[:, None])) + rng.normal(0, 0.4, (160, 80))
np.savez("waves.npz", X_train=X[:60], y_train=y[:60], X_test=X[60:], y_test=y[60:])

# %% [markdown]
# ## Train and export

# %%
data = datasets.load("waves.npz")
model = sc.models.DSN(data.n_channels, len(data.classes), nf=16, depth=3, sparsity=0.9)
train(model, data.X_train, data.y_train, Recipe(epochs=epochs, lr=1e-3), verbose=False)
shutil.rmtree("waves-c", ignore_errors=True)
folder = sc.export_c(model, data.X_test, "waves-c", name="waves", weights="int8",
                     calibration=data.X_train)  # fmt: skip

# %% [markdown]
# ## Compile, and run the self-test

# %%
print((folder / "README.md").read_text())
if compiler := shutil.which("cc"):
    words = [compiler, "-std=c99", "-O2", "waves.c", "waves_test.c", "-o", "waves_test"]
    subprocess.run(words, cwd=folder, check=True)
    print(subprocess.run(["./waves_test"], cwd=folder, capture_output=True, text=True).stdout)
