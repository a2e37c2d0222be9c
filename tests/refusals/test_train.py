"""What ``training.train``, its recipe and its predictions refuse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from refusals import refusals
from tiny import data, network, run
from torch import nn

from sparseconv.training import Recipe, TrainingResult, train


def sixes(n_cases: int, **arguments: Any) -> TrainingResult:
    return train(SIXES, X[:n_cases], y[:n_cases], Recipe(epochs=1, batch_size=6), **arguments)


X, y = data()
NAN = X.clone()
NAN[3, 0, 5] = math.nan
NO_SOFTMAX = nn.Sequential(nn.Flatten(), nn.Linear(24, 2))
SQUEEZING = nn.Sequential(nn.Flatten(), nn.Linear(24, 2), nn.LogSoftmax(1), nn.Flatten(0))
FROZEN = network().requires_grad_(False)
SIXES = nn.Sequential(nn.LayerNorm((6, 1, 24)), *NO_SOFTMAX, nn.LogSoftmax(1))  # six series
PAIR = nn.GRU(24, 2)
A_FILE = Path(__file__)


def of(X: Any, y: Any) -> None:
    train(network(), X, y, verbose=False)


test_train = refusals(
    (lambda: of(X, y[:-1]), ValueError, "y of shape (n_cases,)"),
    (lambda: of(X[:0], y[:0]), ValueError, "at least one case"),
    (lambda: of(X, y + 0.5), TypeError, "class indices as integers"),
    (lambda: of(X, y + 1), ValueError, "y must contain class indices"),
    (lambda: train(SQUEEZING, X[:1], y[:1]), ValueError, "log-probabilities (n_cases"),
    (lambda: run(FROZEN), RuntimeError, "does not require grad"),
    (lambda: of(NAN, y), ValueError, "loss became nan"),
    (lambda: of(X.expand(-1, 2, -1), y), ValueError, "expects series of shape (n_cases, 1, n"),
    (lambda: run(network(), validation=(X, y + 1)), ValueError, "class indices in [0, 2)"),
    (lambda: run(network(), resume=True), ValueError, "resume=True needs out"),
    (lambda: run(network(), checkpoint_every=0), ValueError, "checkpoint_every must be at least"),
    (lambda: run(network(), out=A_FILE), ValueError, "cannot be written"),
    (lambda: run(PAIR), TypeError, "must return one tensor, but returned tuple"),
    (lambda: run(NO_SOFTMAX), ValueError, "end it with torch.nn.LogSoftmax"),
    (lambda: run(network(), cuda_graphs=True), ValueError, "call model.cuda(), or"),
    (lambda: run(network(), cuda_graphs=True, penalty=1), ValueError, "a penalty or cuda_graphs"),
)  # fmt: skip

test_recipe = refusals(
    (lambda: Recipe(epochs=0), ValueError, "epochs must be at least 1, but got 0"),
    (lambda: Recipe(epochs=1.5), TypeError, "epochs must be an int"),
    (lambda: Recipe(precision="fp16"), ValueError, "('float32', 'bfloat16'), but got 'fp16'"),
    (lambda: Recipe(lr="fast"), TypeError, "lr must be a number, but got str"),
    (lambda: Recipe(lr=math.nan), ValueError, "lr must be finite"),
    (lambda: Recipe(lr=1e-5), ValueError, "lr_min <= lr"),
    (lambda: Recipe(decay_share=1.1), ValueError, "decay_share must lie in (0, 1]"),
    (lambda: Recipe(grow="slowly"), ValueError, "grow must be one of"),
)  # fmt: skip


def test_a_state_for_whole_batches_trains() -> None:
    sixes(18, validation=(X[:12], y[:12]), verbose=False)
