"""A sweep's plan: which network is trained on which data set, how, and with which seeds."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.paper import kinds
from benchmarks.paper.archives import SERIES, SPLITS, Archive, choose, lacking
from benchmarks.paper.networks import MOMENTS, NETWORKS, ROCKETS, WEIGHTS
from benchmarks.paper.variants import check_variants, variant_name
from sparseconv.training.recipe import Recipe

PLANS = Path(__file__).with_name("plans")
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
    "keep": False,
    "picked": False,
}
MOST_EPOCHS, MOST_MEMBERS = 1_000_000, 100
# What makes two jobs of one name the same.
CONTENT = tuple(key for key in DEFAULTS if key not in ("keep", "picked"))


@dataclass(frozen=True)
class Job:
    """One network to train and to test.

    Attributes:
        run: the name of its line in the plan.
        dataset: the name of the data set.
        seed: of the first weights and of the training.
        options: ``model``, ``weights``, ``network`` (its arguments), ``recipe`` (constants other
            than the paper's), ``series`` (raw or z-normalised), ``split``, ``moments``,
            ``members`` (networks of an ensemble), ``silence`` (weight of the loss that silences
            filters), ``pruning`` (ways to make the trained network smaller).
        keep: leave the folder with its checkpoint.
        picked: the data set was chosen by results, so the job counts in no comparison.
    """

    run: str
    dataset: str
    seed: int
    options: Mapping[str, Any]
    keep: bool = False
    picked: bool = False

    @property
    def key(self) -> tuple[str, str, int]:
        """What names the job among all of a sweep."""
        return self.run, self.dataset, self.seed

    def __str__(self) -> str:
        return f"{self.run}, {self.dataset}, seed {self.seed}"

    def recipe(self, member: int = 0) -> Recipe:
        """The constants of its training; of an ensemble, of that member's."""
        return Recipe(seed=member_seed(self.options, self.seed, member), **self.options["recipe"])


def n_members(options: Mapping[str, Any]) -> int:
    """How many networks a job's ensemble has; 1 for a network alone."""
    found: int = options.get("members", 1)  # a row of an earlier version has none
    return found


def member_seed(options: Mapping[str, Any], seed: int, member: int) -> int:
    """The seed of a member of a job's ensemble: no other job of its run has it.

    The first member of seed 0 is the network that seed 0 gives alone.
    """
    return seed * n_members(options) + member


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
    """Read a plan; the jobs in its order, in each run all sets of one seed before the next.

    A plan has ``epochs``, ``seeds``, ``order`` and ``[[run]]`` tables. With ``order = "seeds"`` all
    runs have one seed before the next begins, with ``order = "sets"`` one data set, the cheapest
    first: however early it ends, such a sweep has something in each table.

    Args:
        path: a ``.toml`` file, or the name of one in ``benchmarks/paper/plans``.
        archive: the data sets to choose from.
        left_out: is told what the plan names and the archive does not hold.

    Raises:
        ValueError: not a plan; the message names the run and the key.
    """
    file, content = _read(path)
    try:
        runs = _checked(content)
        jobs, absent = _all_jobs(runs, content, archive)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the plan {file} cannot be used: {error}") from error
    if not jobs:
        raise ValueError(
            f"the plan {file} chooses no data set that the archive holds; it has "
            f"{', '.join(archive.shapes) or 'none that can be read'}"
            '; sets = "all" in a run chooses all that are there'
        )
    if absent:
        left_out(f"{', '.join(absent)}: the archive does not hold them")
    if empty := [run["name"] for run in runs if all(run["name"] != job.run for job in jobs)]:
        names = ", ".join(f'"{name}"' for name in dict.fromkeys(empty))  # some hold commas
        left_out(f"the runs {names}: nothing of their data sets is there")
    return sorted(jobs, key=partial(ORDERS[content.get("order", "runs")], archive))


def _checked(content: Mapping[str, Any]) -> list[Any]:
    """The runs of a plan."""
    _check_keys(content, ("epochs", "seeds", "order", "run"))
    if (order := content.get("order", "runs")) not in list(ORDERS):
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, but got {order!r}")
    runs = content.get("run", [])
    if not isinstance(runs, list) or not runs:
        raise ValueError("it has no [[run]]; write one for each kind of network")
    Recipe(epochs=content.get("epochs", 1))
    _check_seeds(content.get("seeds", [0]))
    return runs


def _all_jobs(
    runs: Sequence[Any], content: Mapping[str, Any], archive: Archive
) -> tuple[list[Job], list[str]]:
    """The jobs of all runs, each once; and the data sets that these name and that are not there."""
    jobs: dict[tuple[str, str, int], Job] = {}
    options: dict[str, Mapping[str, Any]] = {}  # of each run
    absent: dict[str, None] = {}
    for number, run in enumerate(runs, 1):
        try:
            for job in _jobs(run, content, archive):
                for key, above, here in differing(
                    options.setdefault(job.run, job.options), job.options
                ):
                    raise ValueError(
                        f"it has {key} {above!r} above and {here!r} here; give one of them "
                        "another name"
                    )
                if jobs.setdefault(job.key, job).keep != job.keep:
                    raise ValueError(f"{job} has keep once, and once not")
                if not job.picked:  # whoever else picked it
                    jobs[job.key] = job
            absent |= dict.fromkeys(lacking(archive, run["sets"]))
        except (ValueError, TypeError) as error:
            name = (isinstance(run, dict) and run.get("name")) or number
            raise ValueError(f"run {name}: {error}") from error
    for name, held in options.items():
        for other in (variant_name(name, variant) for variant in held["pruning"]):
            if other in options:
                raise ValueError(
                    f"run {other} has the name that tables give a variant of {name}; give one of "
                    "them another name"
                )
    return list(jobs.values()), list(absent)


def differing(some: Mapping[str, Any], others: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The options of two jobs that differ: the name, and both values."""
    pairs = [
        (name, some.get(name, DEFAULTS[name]), others.get(name, DEFAULTS[name])) for name in CONTENT
    ]
    return [(name, one, other) for name, one, other in pairs if one != other]


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
    except OSError as error:
        raise ValueError(f"the plan {file} cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the plan {file} is not TOML: {error}") from error


def _check_seeds(seeds: Any) -> None:
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError(f"seeds must be a list of integers, at least one, but got {seeds!r}")
    for seed in seeds:
        Recipe(seed=seed)


def _jobs(run: dict[str, Any], content: Mapping[str, Any], archive: Archive) -> list[Job]:
    _check_keys(run, ("name", "sets", "seeds", *DEFAULTS))
    for key in ("name", "sets"):
        if key not in run:
            raise ValueError(f"it needs {key!r}")
    settings = DEFAULTS | run
    if not kinds.text(run["name"]):
        raise ValueError(f"name must be a text of one line, but got {run['name']!r}")
    for key in ("keep", "picked"):
        if not isinstance(settings[key], bool):
            raise ValueError(f"{key} must be true or false, but got {settings[key]!r}")
    options = {key: settings[key] for key in CONTENT}
    trained = settings["model"] not in list(ROCKETS)  # in epochs
    if trained and "epochs" in content and isinstance(options["recipe"], dict):
        options["recipe"] = {"epochs": content["epochs"]} | options["recipe"]
    _check_options(options)
    seeds = run.get("seeds", content.get("seeds", [0]))
    _check_seeds(seeds)
    jobs = [
        Job(run["name"], dataset, seed, options, settings["keep"], settings["picked"])
        for seed in seeds
        for dataset in choose(archive, run["sets"])
    ]
    for job in jobs:
        if (epochs := job.recipe().epochs) > MOST_EPOCHS:  # other constants the recipe refuses
            raise ValueError(f"epochs must be at most {MOST_EPOCHS}, but got {epochs}")
    return jobs


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse what is no job's ``options``, and what would be ignored silently.

    Raises:
        ValueError: the message names the key.
    """
    for key in ("network", "recipe"):
        if not isinstance(options[key], dict):
            raise ValueError(f"{key} must be a table, but got {options[key]!r}")
    choices = {
        "model": (*NETWORKS, *ROCKETS),
        "weights": WEIGHTS,
        "series": SERIES,
        "split": SPLITS,
        "moments": MOMENTS,
    }
    for key, allowed in choices.items():
        if not isinstance(options[key], str) or options[key] not in allowed:
            raise ValueError(f"{key} must be one of {', '.join(allowed)}, not {options[key]!r}")
    constants = {field.name for field in fields(Recipe)} - {"seed"}
    _check_keys(options["recipe"], constants, "recipe.")
    if type(options["members"]) is not int or not 1 <= options["members"] <= MOST_MEMBERS:
        raise ValueError(
            f"members must be a whole number from 1 to {MOST_MEMBERS}, but got "
            f"{options['members']!r}"
        )
    _check_together(options)
    _check_pruning(options)
    _check_keys(options["network"], _arguments(options["model"]), "network.")


def _arguments(model: str) -> Sequence[str]:
    if model in ROCKETS:
        return ROCKETS[model]
    known = inspect.signature(NETWORKS[model]).parameters.values()
    options = [parameter.name for parameter in known if parameter.kind is parameter.KEYWORD_ONLY]
    return [name for name in options if name != "n_timepoints"]  # the data set's


def _check_together(options: Mapping[str, Any]) -> None:
    """Refuse what would be ignored silently."""
    grow = options["recipe"].get("grow", "random")
    if options["model"] != "DSN":
        for key, default in (("weights", "sparse"), ("moments", "zero")):
            if options[key] != default:
                raise ValueError(f"{key} = {options[key]!r} is for DSN, not for {options['model']}")
        pointless = options["recipe"] if options["model"] in ROCKETS else PATTERNS
        idle = [key for key in options["recipe"] if key in pointless]
        if idle:
            raise ValueError(f"recipe.{idle[0]} is not for {options['model']}; leave it out")
    if options["members"] > 1 and (options["pruning"] or options["model"] in ROCKETS):
        other = "pruning" if options["pruning"] else options["model"]
        raise ValueError(
            f"members = {options['members']} is not for {other}; leave one of the two out"
        )
    if options["model"] in ROCKETS:
        _check_rocket(options["network"])
    if options["weights"] == "masked dense" and (grow != "random" or options["moments"] != "zero"):
        raise ValueError("masked dense weights grow at random, and have the moments that they have")
    if options["moments"] != "zero" and grow == "static":
        raise ValueError(
            f"moments = {options['moments']!r} needs weights that grow, not a static grow"
        )
    if options["moments"] != "zero" and options["network"].get("sparsity") == 0:
        raise ValueError(f"moments = {options['moments']!r} needs sparse weights, not sparsity = 0")


def _check_rocket(network: Mapping[str, Any]) -> None:
    n_kernels, cv, k = (network.get(key) for key in ("n_kernels", "cv", "k"))
    if n_kernels is not None and (type(n_kernels) is not int or n_kernels < 1):
        raise ValueError(f"network.n_kernels must be a number of kernels, but got {n_kernels!r}")
    if not isinstance(cv, bool | None) or k not in (None, "cv") or (cv and k):
        raise ValueError(
            'network.cv may be true, or network.k "cv", and not both, but got '
            f"cv = {cv!r} and k = {k!r}"
        )


def _check_pruning(options: Mapping[str, Any]) -> None:
    """Refuse what a plan asks of ``pruning`` and ``silence`` that cannot be done."""
    check_variants(options["pruning"])
    if not kinds.number(options["silence"]) or options["silence"] < 0:
        raise ValueError(f"silence must be a weight, at least 0, but got {options['silence']!r}")
    if options["pruning"] and (options["model"] == "DSN" or options["model"] in ROCKETS):
        raise ValueError(f"pruning is for dense networks, not for {options['model']}")
    if options["silence"] and not options["pruning"]:
        raise ValueError("silence is for a run with pruning, and would be ignored in this one")
    if options["silence"] and options["model"] not in ("InceptionTime", "LITE"):
        raise ValueError(f"no stages of {options['model']} are known that silence could act on")


# The constants of Recipe that are about patterns.
PATTERNS = (
    "update_every_epochs", "update_every_steps", "skip_step_at_update", "decay_share",
    "prune_fraction", "prune_floor", "grow",
)  # fmt: skip


def _check_keys(table: Any, known: Any, prefix: str = "") -> None:
    if not isinstance(table, dict):
        raise ValueError(f"expected a table, but got {table!r}")
    unknown = [key for key in table if key not in known]
    if unknown:
        names = ", ".join(sorted(known)) or "none"
        raise ValueError(f"unknown key {prefix}{unknown[0]}; known are {names}")
