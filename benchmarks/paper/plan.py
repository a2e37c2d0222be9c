"""A sweep's plan: networks, data sets, options and seeds."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.paper.archives import Archive, as_table, choose
from benchmarks.paper.networks import NETWORKS, ROCKETS, member_seed
from sparseconv.pruning import DSP, HC, WHC, Criterion, Evolutionary, Jacobian, Magnitude
from sparseconv.training.recipe import Recipe

PLANS = Path(__file__).with_name("plans")
# A job's options, and what they are where a plan does not say.
DEFAULTS: dict[str, Any] = {
    "model": "DSN",
    "weights": "sparse",
    "network": {},
    "recipe": {},
    "series": "raw",
    "split": "own",
    "moments": "zero",
    "members": 1,
    "silence": 0.0,
    "pruning": [],
}
CHOICES: dict[str, Sequence[str]] = {
    "model": (*NETWORKS, *ROCKETS),
    "weights": ("sparse", "masked dense"),
    "series": ("raw", "z-normalised"),
    "split": ("own", "within subjects"),
    "moments": ("zero", "mean", "corrected"),
}
# What ``pruning`` may name as ``criterion``: made of training data and a seed.
CRITERIA: dict[str, Callable[[tuple[Tensor, Tensor], int], Criterion]] = {
    "whc": lambda data, seed: WHC(),
    "hc": lambda data, seed: HC(),
    "l2": lambda data, seed: Magnitude(),
    "jacobian": lambda data, seed: Jacobian(data),
    "dsp": lambda data, seed: DSP(data),
    "evolutionary": lambda data, seed: Evolutionary(
        data, population=8, generations=6, cases=64, seed=seed
    ),
}
WITHOUT_RATIO = ("dsp", "evolutionary")  # these find out themselves how many filters go


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of a plan's ways to shrink a trained network (``pruning``)."""

    name: str
    criterion: str | None = None  # this and the next three: of ``prune_filters``
    ratio: float | None = None
    steps: int = 1
    equivalent: bool = False
    factorize: str | None = None  # the method of ``factorize``, instead of pruning
    compression: float | None = None
    retrain: bool = False  # begin anew with this shape, for all epochs
    sparsity: float | None = None  # of the convolutions that are left

    def __post_init__(self) -> None:
        if self.criterion not in (None, *CRITERIA):
            raise ValueError(
                f"criterion must be one of {', '.join(CRITERIA)}, not {self.criterion!r}"
            )
        needs_ratio = self.criterion not in (None, *WITHOUT_RATIO)
        both = (self.factorize is None) == (self.compression is None)
        if (self.ratio is not None) != needs_ratio or not both:
            raise ValueError(
                f"pruning's {self.name!r} must have a ratio with a criterion, unless that is "
                f"{' or '.join(WITHOUT_RATIO)}; compression with factorize; neither otherwise"
            )


@dataclass(frozen=True)
class Job:
    """One network to train and test."""

    run: str  # the name of its line in the plan
    dataset: str
    seed: int  # of the first weights and of the training
    options: Mapping[str, Any]  # those of ``DEFAULTS``, as plans/README.md describes them
    post_hoc: bool = False  # chosen by results, so that it counts in no comparison

    @property
    def key(self) -> tuple[str, str, int]:
        return self.run, self.dataset, self.seed

    def __str__(self) -> str:
        return f"{self.run}, {self.dataset}, seed {self.seed}"

    def recipe(self, member: int = 0) -> Recipe:
        return Recipe(seed=member_seed(self.options, self.seed, member), **self.options["recipe"])


# What a job is sorted by; equal ones stay as the plan has them.
ORDERS: dict[str, Callable[[Archive, Job], Any]] = {
    "runs": lambda archive, job: 0,
    "seeds": lambda archive, job: job.seed,
    "sets": lambda archive, job: (
        archive.shapes[job.dataset].train_points, job.dataset, job.seed
    ),
}  # fmt: skip


def read_plan(
    path: str | Path, archive: Archive, left_out: Callable[[str], None] = lambda _: None
) -> list[Job]:
    """Read a plan, described in ``plans/README.md``; return its jobs in order.

    ``path`` is a ``.toml`` file, or the name of one in ``benchmarks/paper/plans``; ``left_out``
    receives the data sets that the archive lacks.
    """
    file, content = _read(path)
    _check_keys(content, ("like", "cheapest", "epochs", "seeds", "order", "run"))
    runs = [*_shrunk(content), *content.get("run", [])]
    jobs: dict[tuple[str, str, int], Job] = {}
    options: dict[str, Mapping[str, Any]] = {}
    for number, run in enumerate(runs, 1):
        name = run.get("name", f"number {number}")
        try:
            found, absent = _jobs(run, content, archive)
            if found and (change := difference(options.setdefault(name, found[0].options),
                                               found[0].options)):  # fmt: skip
                raise ValueError(f"a run with this name above has {change}; rename one of the two")
        except (ValueError, TypeError) as error:
            raise ValueError(f"the plan {file}, run {name}: {error}") from error
        for job in found:
            if job.key not in jobs or not job.post_hoc:  # also where another line says so
                jobs[job.key] = job
        if absent:
            left_out(f"{', '.join(absent)}: the archive does not contain them")
        if not found:
            left_out(f'the run "{name}": none of its data sets is available')
    if not jobs:
        raise ValueError(
            f"the plan {file} selects no data set that the archive has; the archive has "
            f"{', '.join(archive.shapes) or 'none that can be read'}"
            '; sets = "all" in a run chooses all of them'
        )
    if (order := content.get("order", "runs")) not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, but got {order!r}")
    return sorted(jobs.values(), key=partial(ORDERS[order], archive))


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Describe an option in which two jobs differ; "" if none does."""
    pairs = ((key, there[key], here[key]) for key in DEFAULTS)
    return next((f"{key} {one!r}, not {other!r}" for key, one, other in pairs if one != other), "")


def _read(path: str | Path) -> tuple[Path, dict[str, Any]]:
    file = Path(path).expanduser()  # make hands "~" over as it is
    if file.suffix != ".toml":
        file = PLANS / f"{path}.toml"
    try:
        return file, tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in PLANS.glob("*.toml")))
        raise ValueError(
            f"no plan {file}; name a file that ends with .toml, or one of {known}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"the plan {file} is not TOML: {error}") from error


def _shrunk(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the runs of the plan that this one is ``like``, with fewer epochs, sets and seeds."""
    if "like" not in content:
        return []
    if missing := {"cheapest", "epochs"} - content.keys():
        raise ValueError(f"a plan with the key like also needs {' and '.join(sorted(missing))}")
    _, whole = _read(content["like"])
    share = content["epochs"] / whole.get("epochs", Recipe.epochs)
    runs: dict[str, dict[str, Any]] = {}
    for run in whole.get("run", []):
        own = {key: value for key, value in run.items() if key != "seeds"}
        if "sets" in own:
            own["sets"] = as_table(own["sets"]) | {"cheapest": content["cheapest"]}
        if "epochs" in own.get("recipe", {}):
            own["recipe"] = own["recipe"] | {"epochs": max(1, int(share * own["recipe"]["epochs"]))}
        if not run.get("post_hoc"):
            runs.setdefault(run.get("name"), own)
    return list(runs.values())


def _jobs(
    run: dict[str, Any], content: Mapping[str, Any], archive: Archive
) -> tuple[list[Job], list[str]]:
    """Return a run's jobs, and the data sets that it names but the archive lacks."""
    _check_keys(run, ("name", "sets", "seeds", "post_hoc", *DEFAULTS))
    if missing := [key for key in ("name", "sets") if key not in run]:
        raise ValueError(f"the key {missing[0]!r} is missing; add it")
    options = {key: run.get(key, default) for key, default in DEFAULTS.items()}
    if options["model"] not in ROCKETS and "epochs" in content:
        options["recipe"] = {"epochs": content["epochs"]} | options["recipe"]
    _check_options(options)
    seeds = run.get("seeds", content.get("seeds", [0]))
    if not isinstance(seeds, list) or not seeds:
        raise ValueError(f"seeds must be a list of at least one integer, but got {seeds!r}")
    names, absent = choose(archive, run["sets"])
    post_hoc = run.get("post_hoc", False)
    jobs = [Job(run["name"], name, seed, options, post_hoc) for seed in seeds for name in names]
    for job in jobs:
        job.recipe()  # which refuses constants that cannot be
    return jobs, absent


def _check_options(options: Mapping[str, Any]) -> None:
    """Reject options that are impossible or would be ignored."""
    for key, allowed in CHOICES.items():
        if options[key] not in allowed:
            raise ValueError(f"{key} must be one of {', '.join(allowed)}, not {options[key]!r}")
    model, pruned = options["model"], bool(options["pruning"])
    if model in ROCKETS:
        _check_keys(options["network"], ("n_kernels", "cv", "k"), "network.")
    else:
        inspect.signature(NETWORKS[model]).bind_partial(1, 2, **options["network"])
    names = [Variant(**asked).name for asked in options["pruning"]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"pruning names {twice[0]!r} twice")
    drawn, dsn = model in ROCKETS, model == "DSN"
    ignored = {
        "weights": not dsn,
        "moments": not dsn or options["weights"] != "sparse",
        "recipe": drawn,
        "members": drawn or pruned,
        "pruning": drawn or dsn,
        "silence": not pruned,
    }
    for key in (key for key, is_ignored in ignored.items() if is_ignored):
        if options[key] != DEFAULTS[key]:
            raise ValueError(
                f"{key} = {options[key]!r} does not apply to {model} with the other options of "
                f"this run; omit {key}"
            )


def _check_keys(table: Mapping[str, Any], known: Iterable[str], prefix: str = "") -> None:
    if unknown := [key for key in table if key not in known]:
        names = ", ".join(sorted(known)) or "none"
        raise ValueError(f"unknown key {prefix}{unknown[0]}; the known keys are {names}")
