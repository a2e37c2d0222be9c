"""Calls that mypy accepts, and calls that it refuses: there an unused ``ignore`` is an error.

Nothing runs this file: ``make lint`` checks it with the package.
"""

import torch

import sparseconv as sc
from sparseconv.training import Recipe

x, model = torch.randn(1, 2, 30), torch.nn.Sequential(torch.nn.Conv1d(2, 4, 5))
adam = torch.optim.Adam(model.parameters())
pattern = sc.KernelCSR.full((4, 2, 5))

sc.SparseConv1d(2, 4, 5, padding="same", padding_mode="reflect", density=0.1, backend="cpp")
sc.SparseConv1d(2, 4, 5, padding="sam")  # type: ignore[arg-type]
sc.SparseConv1d(2, 4, 5, padding_mode="mirror")  # type: ignore[arg-type]
sc.SparseConv1d(2, 4, 5).reset_parameters(fan_in="sparse")  # type: ignore[arg-type]
sc.sparse_conv1d(x, torch.ones(40), pattern, padding=(4, 0), backend="reference")
sc.sparse_conv1d(x, torch.ones(40), pattern, backend="gpu")  # type: ignore[arg-type]

sc.DSTScheduler(model, adam, update_every=1, end_step=9, grow="gradient")
sc.DSTScheduler(model, adam, update_every=1, end_step=9, grow="rigl")  # type: ignore[arg-type]
Recipe(grow="static", precision="bfloat16")
Recipe(grow="rigl")  # type: ignore[arg-type]
Recipe(precision="bf16")  # type: ignore[arg-type]

sc.models.DSN(1, 2, init="random", padding="centred-zeros")
sc.models.DSN(1, 2, init="uniform")  # type: ignore[arg-type]
sc.models.DSN(1, 2, padding="same")  # type: ignore[arg-type]
sc.models.InceptionTime(1, 2, variant="torch")  # type: ignore[arg-type]
sc.factorize(model, method="svd", rank=1)
sc.factorize(model, method="tucker", rank=1)  # type: ignore[arg-type]
sc.export_c(model, x, "c", weights="int8", calibration=x)
sc.export_c(model, x, "c", weights="int4")  # type: ignore[arg-type]
sc.POCKETClassifier("minirocket", keep="cv", k="cv", class_weight="balanced")
sc.POCKETClassifier("hydra")  # type: ignore[arg-type]
sc.POCKETClassifier(keep="all")  # type: ignore[arg-type]
sc.DSNClassifier(grow="gradient", precision="bfloat16", device="cuda", backend="auto")
sc.DSNClassifier(grow="rigl")  # type: ignore[arg-type]
