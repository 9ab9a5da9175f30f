"""A trained model as a stock nnU-Net model zip, for machines without this package."""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.file_path_utilities import (
    convert_trainer_plans_config_to_identifier,
    folds_tuple_to_string,
)
from tqdm import tqdm

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.nnunet.trainer_class import find_trainer_class
from nnunetv2_crossmatch.self_training.record import RECORD
from nnunetv2_crossmatch.trainers.checkpoints import OURS, CheckpointError, read_checkpoint
from nnunetv2_crossmatch.trainers.records import read_method, read_training
from nnunetv2_crossmatch.trainers.unlabeled_cases import nnUNetTrainerWithUnlabeled
from nnunetv2_crossmatch.utilities.files import INCOMING, sha256_of
from nnunetv2_crossmatch.utilities.versions import versions

STOCK = "nnUNetTrainer"
PROVENANCE = "provenance.json"  # in the model folder of the zip
ONLY_TO_CONTINUE = {OURS, "optimizer_state", "grad_scaler_state"}  # what no prediction needs
OF_MODEL = ("plans.json", "dataset.json", "dataset_fingerprint.json")
OF_FOLD = ("progress.png", "progress_unlabeled.png", "validation/summary.json")
OF_CROSS_VALIDATION = ("summary.json", "postprocessing.pkl", "postprocessing.json")


def export_model(
    dataset_name: str,
    configuration: str,
    trainer: str,
    plans: str,
    folds: Sequence[int | str] | None,
    checkpoint: str,
    target: Path,
) -> tuple[list[int | str], Path | None]:
    """Write the zip, whole or not at all; in it the model is nnUNetTrainer's, and says in PROVENANCE whose it was.

    Args:
        folds: None for all that there are; fold ``all`` then only if it is the only one.

    Returns:
        The folds in the zip, and where in it is the postprocessing that find_best_configuration chose for them.

    Raises:
        FileExistsError: ``target``.
        FileNotFoundError: the model, a fold or a checkpoint; says what to do.
        ValueError: a trainer of stock nnU-Net, or one that builds another network than nnU-Net's.
        CheckpointError: a damaged checkpoint, or one that this package has not written.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists. Remove it, or give another name to -o.")
    cls = find_trainer_class(trainer)
    if not issubclass(cls, nnUNetTrainerWithUnlabeled):
        raise ValueError(f"{trainer} is not a trainer of this package. nnUNetv2_export_model_to_zip exports it.")
    if not cls.has_stock_network():
        raise ValueError(f"{trainer} builds a network of its own, which stock nnU-Net could not.")
    runs = _trained_folds(RunFolder.of(dataset_name, trainer, plans, configuration, 0), folds, checkpoint)
    model = runs[0].model_folder
    stock = Path(dataset_name, convert_trainer_plans_config_to_identifier(STOCK, plans, configuration))
    provenance: dict[str, Any] = {"trainer": trainer, "exported_with": versions(), "folds": {}}
    unfinished = target.with_name(f"{INCOMING}{target.name}")
    cross_validation = f"crossval_results_folds_{folds_tuple_to_string([run.fold for run in runs])}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ZipFile(unfinished, "w", ZIP_DEFLATED) as archive:
            for run in tqdm(runs, desc="Exporting", disable=not sys.stderr.isatty()):
                file = run.checkpoint(checkpoint)
                try:
                    content = read_checkpoint(file)
                except CheckpointError as e:
                    raise CheckpointError(f"{file} cannot be exported; -chk names another. To train on: {e}") from None
                provenance["folds"][str(run.fold)] = _provenance(file, content)
                content = {key: value for key, value in content.items() if key not in ONLY_TO_CONTINUE}
                with archive.open(str(stock / file.relative_to(model)), "w", force_zip64=True) as stream:
                    torch.save({**content, "trainer_name": STOCK}, stream)
            names = [Path(name) for name in OF_MODEL]
            names += [Path(run.path.name, name) for run in runs for name in OF_FOLD]
            names += [Path(cross_validation, name) for name in OF_CROSS_VALIDATION]
            for name in names:
                if (model / name).exists():
                    archive.write(model / name, stock / name)
            archive.writestr(str(stock / PROVENANCE), json.dumps(provenance, indent=2))
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
    postprocessing = Path(cross_validation, "postprocessing.pkl")
    return [run.fold for run in runs], stock / postprocessing if (model / postprocessing).exists() else None


def _trained_folds(any_fold: RunFolder, folds: Sequence[int | str] | None, checkpoint: str) -> list[RunFolder]:
    """Of the same model as ``any_fold``."""
    model = any_fold.model_folder
    if folds is None:
        there = [RunFolder(folder) for folder in sorted(model.glob("fold_*"))]
        runs = [run for run in there if isinstance(run.fold, int)] or [run for run in there if run.fold == "all"]
    else:
        runs = [RunFolder(model / f"fold_{fold}") for fold in dict.fromkeys(folds)]
    if not runs:
        raise FileNotFoundError(f"{model} has no trained fold. Train one: {any_fold.train_command()}")
    for run in runs:
        if not (file := run.checkpoint(checkpoint)).exists():
            begun = f"{run.train_command('--c')} finishes it; or leave it out (-f) or name a checkpoint (-chk)"
            fix = begun if run.path.exists() else f"Train it: {run.train_command()}"
            raise FileNotFoundError(f"{file} is missing. {fix}.")
    return runs


def _provenance(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """What is known of a fold; {"method": None} and so on where that was not written down."""
    training = read_training(file.parent)
    scans = training.get("unlabeled")
    pseudo_labels = file.with_name(RECORD)
    return {
        "trainer": content["trainer_name"],
        "epochs": content["current_epoch"],
        "checkpoint": {"name": file.name, "sha256": sha256_of(file)},
        "method": read_method(file.parent) or None,
        "pseudo_labels": load_json(str(pseudo_labels)) if pseudo_labels.exists() else None,
        "trained_with": training.get("versions"),
        "unlabeled": scans and {"scans": len(scans), "sha256": _hash(scans)},
    }


def _hash(scans: dict[str, str]) -> str:
    """SHA-256 of the ids and of the voxels' hashes."""
    return hashlib.sha256(json.dumps(scans, sort_keys=True).encode()).hexdigest()
