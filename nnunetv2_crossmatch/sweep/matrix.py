"""The runs of a matrix: all that can be wrong with them before they start, and their way from waiting to done."""

import signal
import time
from glob import escape
from pathlib import Path

from nnunetv2.paths import nnUNet_results

from nnunetv2_crossmatch.comparison.runs import began_with
from nnunetv2_crossmatch.nnunet.loaders import preprocessed_cases
from nnunetv2_crossmatch.nnunet.run_folder import RunFolder, plans_of_seeds
from nnunetv2_crossmatch.nnunet.trainer_class import find_trainer_class
from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.reconcile import prepare_splits
from nnunetv2_crossmatch.preprocessing.splits import every_fold, read_splits, require_folds
from nnunetv2_crossmatch.sweep.clusters import Cluster
from nnunetv2_crossmatch.sweep.table import Table
from nnunetv2_crossmatch.utilities.errors import some
from nnunetv2_crossmatch.utilities.files import read_json, write_json

OVER = "out of time"
_ENDED = ("done", "failed", OVER)


def make_runs(
    dataset: str, configuration: str, plans: str, trainers: list[str], folds: list[int | str] | None, seeds: int = 1
) -> list[RunFolder]:
    """Every trainer on every fold: seed by seed, each fold by fold, so that trainers can be compared soon.

    ``folds``: None for those of the split.
    ``seeds``: how often each is trained; the plans of the repeats are written, see :func:`plans_of_seeds`.
    The split is written if there is none: jobs that start together must not each write one, and stock nnU-Net's
    does not know patients.

    Raises:
        RuntimeError: a path of nnU-Net's is not set; there is no such dataset or trainer.
        ValueError: not preprocessed with these plans; no such configuration or fold, or ``all`` beside others;
            a repeat has folds that were trained before the plans changed.
    """
    nnUNet_results.require()
    found = Dataset.find_preprocessed(dataset)
    manager = found.plans(plans)
    cases = found.preprocessed / Planned(found, manager, configuration).configuration.data_identifier
    if not cases.is_dir():
        raise ValueError(f"There is no {cases}. Run nnUNetv2_preprocess -d {dataset} -plans_name {plans}.")
    if folds is None:
        prepare_splits(found, preprocessed_cases(cases))
        folds = every_fold(found.preprocessed)
    for trainer in trainers:
        find_trainer_class(trainer)
    if set(folds) != {"all"}:
        prepare_splits(found, preprocessed_cases(cases))
    require_folds(found.name, folds, len(read_splits(found.preprocessed)))
    names = plans_of_seeds(plans, seeds)
    _write_plans_of_seeds(found, plans, names[1:])
    return [
        RunFolder.of(found.name, trainer, name, configuration, fold)
        for name in names
        for fold in dict.fromkeys(folds)
        for trainer in dict.fromkeys(trainers)
    ]


def _write_plans_of_seeds(dataset: Dataset, plans: str, seeds: list[str]) -> None:
    """Copies of the plans; one that folds are trained with stays, so that the others of the seed are as they."""
    content = read_json(dataset.preprocessed / f"{plans}.json")
    copies = {dataset.preprocessed / f"{name}.json": {**content, "plans_name": name} for name in seeds}
    models, trained = Path(nnUNet_results) / dataset.name, set()
    for file, copy in copies.items():
        if file.exists() and {**read_json(file), "plans_name": file.stem} != copy:
            checkpoints = models.glob(f"*__{escape(file.stem)}__*/fold_*/checkpoint_*.pth")
            trained |= {checkpoint.parents[1] for checkpoint in checkpoints}
    if trained:
        raise ValueError(
            f"{plans}.json has changed since seeds were trained with it, and the folds of a seed must not differ. Move "
            f"away {some(sorted(map(str, trained)))} to train them anew; or undo the change, and train changed plans "
            "under another name (-p)."
        )
    for file, copy in copies.items():
        write_json(copy, file)


def train_all(runs: list[RunFolder], cluster: Cluster) -> None:
    """:func:`follow`, and leave no training behind, however this process is told to end.

    Raises:
        KeyboardInterrupt: by SIGINT, SIGTERM or SIGHUP.
        RuntimeError: names the runs that failed.
    """
    endings = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in endings]  # all as Ctrl-C
    try:
        failed = follow(runs, cluster)
    except KeyboardInterrupt:
        print(f"\n{cluster.interrupted}", flush=True)
        raise
    finally:
        for number in endings:
            signal.signal(number, signal.SIG_IGN)  # until no training is left behind
        cluster.close()
        for number, handler in zip(endings, before, strict=True):
            signal.signal(number, handler)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(runs)} failed: {', '.join(map(str, failed))}. See the logs above.")


def follow(runs: list[RunFolder], cluster: Cluster) -> list[RunFolder]:
    """Start what is neither done nor running, and show how all stand until all have ended.

    Returns:
        the runs that failed.
    """
    table = Table()
    states = {run: "done" if run.is_done else "waiting" for run in runs}
    epochs = {run: run.progress() for run in runs}
    errors: dict[RunFolder, str] = {}
    while True:
        alive = cluster.states()
        for run in [run for run in runs if states[run] not in _ENDED]:
            if cluster.is_over(run):
                states[run] = OVER
            elif run in alive:
                states[run] = "validating" if alive[run] == "running" and run.is_trained else alive[run]
            elif run.is_done:
                states[run] = "done"
            elif run in cluster.jobs:
                states[run], errors[run] = "failed", cluster.error(run)
            elif (first := _to_be_trained_before(run, runs)) and states[first] == "failed":
                states[run], errors[run] = "failed", f"it begins with {first}, which failed"
            else:
                states[run] = "waiting"
                cluster.start(run, first)
            epochs[run] = run.progress()
        table.show(states, epochs, errors)
        if all(state in _ENDED for state in states.values()):
            return list(errors)
        time.sleep(cluster.interval)


def _to_be_trained_before(run: RunFolder, runs: list[RunFolder]) -> RunFolder | None:
    """The other of these runs that it begins with, while that is not trained."""
    stock = began_with(run)
    return stock if stock in runs and not stock.is_trained else None
