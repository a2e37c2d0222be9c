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
    (lambda: of(X, y[:-1]), ValueError, "(n_cases,)"),
    (lambda: of(X[:0], y[:0]), ValueError, "one case"),
    (lambda: of(X, y + 0.5), TypeError, "integers"),
    (lambda: of(X, y + 1), ValueError, "class indices"),
    (lambda: train(SQUEEZING, X[:1], y[:1]), ValueError, "log-probabilities"),
    (lambda: run(FROZEN), RuntimeError, "grad"),
    (lambda: of(NAN, y), ValueError, "nan"),
    (lambda: of(X.expand(-1, 2, -1), y), ValueError, "(n_cases, 1"),
    (lambda: run(network(), validation=(X, y + 1)), ValueError, "[0, 2)"),
    (lambda: run(network(), resume=True), ValueError, "resume"),
    (lambda: run(network(), checkpoint_every=0), ValueError, "checkpoint_every"),
    (lambda: run(network(), out=A_FILE), ValueError, "cannot be written"),
    (lambda: run(PAIR), TypeError, "tuple"),
    (lambda: run(NO_SOFTMAX), ValueError, "LogSoftmax"),
    (lambda: run(network(), cuda_graphs=True), ValueError, "model.cuda()"),
    (lambda: run(network(), cuda_graphs=True, penalty=1), ValueError, "penalty"),
)  # fmt: skip

test_recipe = refusals(
    (lambda: Recipe(epochs=0), ValueError, "epochs"),
    (lambda: Recipe(epochs=1.5), TypeError, "epochs"),
    (lambda: Recipe(precision="fp16"), ValueError, "precision"),
    (lambda: Recipe(lr="fast"), TypeError, "lr "),
    (lambda: Recipe(lr=math.nan), ValueError, "lr "),
    (lambda: Recipe(lr=1e-5), ValueError, "lr_min"),
    (lambda: Recipe(decay_share=1.1), ValueError, "decay_share"),
    (lambda: Recipe(grow="slowly"), ValueError, "grow"),
    (lambda: Recipe(seed=2**63), ValueError, "seed"),
)  # fmt: skip


def test_a_state_for_whole_batches_trains() -> None:
    sixes(18, validation=(X[:12], y[:12]), verbose=False)
