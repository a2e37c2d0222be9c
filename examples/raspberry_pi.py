# %% [markdown]
# # One network on a Raspberry Pi, with and without Python
#
# On a laptop, this script trains a network and writes `board/`. Copy that folder and this file to
# a board with 64-bit Linux, and run the file again: there, it makes predictions. `board/` also
# contains a C program, which needs only a C compiler.
#
# In a copy of the repository on the laptop, run it with `.venv/bin/python` after `make demo`, or
# after the three `pip install` commands in README. The board needs at most `sparseconv`, without
# `[tsc]`.

# %%
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch

import sparseconv as sc

board = Path("board")

# %% [markdown]
# ## On the laptop

# %%
if not board.exists():
    from sparseconv.training import Recipe, train

    rng, epochs = np.random.default_rng(0), 2 if os.environ.get("SPARSECONV_QUICK") else 60
    y = np.arange(160) % 2
    X = np.sin(np.linspace(0, 9, 80) * (1 + 0.3 * y[:, None])) + rng.normal(0, 0.4, (160, 80))
    X = torch.from_numpy(X[:, None]).float()
    model = sc.models.DSN(1, 2, nf=16, depth=3, sparsity=0.9)
    train(model, X[:60], y[:60], Recipe(epochs=epochs, lr=1e-3), verbose=False)
    sc.export_c(model, X[60:63], board, name="net")
    torch.save((model, X[60:], y[60:], model.eval()(X[60:])), board / "net.pt")

# %% [markdown]
# ## On the board, with Python

# %%
model, X, y, expected = torch.load(board / "net.pt", weights_only=False)
with torch.inference_mode():
    scores = sc.optimize_for_inference(model)(X)
torch.testing.assert_close(scores, expected)
accuracy = np.mean(scores.argmax(1).numpy() == y)
print(sc.available_backends()["cpp"])
print(f"{len(X)} series: the laptop's scores, and {accuracy:.0%} of the classes are correct")

# %% [markdown]
# ## On the board, without Python
# `net_test.c` contains three series and the scores that PyTorch computed on the laptop.

# %%
if compiler := shutil.which("cc"):
    words = [compiler, "-std=c99", "-O2", "net.c", "net_test.c", "-lm", "-o", "net_test"]
    subprocess.run(words, cwd=board, check=True)
    print(subprocess.run(["./net_test"], cwd=board, capture_output=True, text=True).stdout)
