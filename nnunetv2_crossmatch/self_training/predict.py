"""A fold's trained model labels the unlabeled scans, where it is sure."""

import os
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunetv2_crossmatch.nnunet.labels import value_names
from nnunetv2_crossmatch.nnunet.loaders import UnlabeledDataset
from nnunetv2_crossmatch.nnunet.predictor import load_predictor
from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.nnunet.segmentation import probabilities_in_scan
from nnunetv2_crossmatch.preprocessing.check import check_dataset
from nnunetv2_crossmatch.preprocessing.dataset import Planned
from nnunetv2_crossmatch.preprocessing.listing import are_absent, list_unlabeled
from nnunetv2_crossmatch.preprocessing.manifest import Manifest
from nnunetv2_crossmatch.preprocessing.reconcile import prepare_splits
from nnunetv2_crossmatch.preprocessing.splits import SPLITS, read_splits, validation_patients, without_patients
from nnunetv2_crossmatch.preprocessing.unlabeled import unlabeled_cases_for_training
from nnunetv2_crossmatch.self_training.confidence import confident_labels, confident_shares, with_ignore_label
from nnunetv2_crossmatch.self_training.picture import draw_picture
from nnunetv2_crossmatch.self_training.preprocess import BadLabel, read_label, unknown_labels
from nnunetv2_crossmatch.self_training.record import (
    PREDICTIONS,
    Origin,
    Record,
    image_stamp,
    model_hash,
    prediction_file,
    pseudo_label_folder,
)
from nnunetv2_crossmatch.utilities.errors import DatasetError, some
from nnunetv2_crossmatch.utilities.files import INCOMING, check_writable, locked, remove_leftovers, sha256_of
from nnunetv2_crossmatch.utilities.versions import versions
from nnunetv2_crossmatch.utilities.workers import open_pool

PICTURES = "pictures"


@dataclass
class Written:
    """What :func:`write_pseudo_labels` did for one fold.

    predicted, current, corrected: cases that were labeled now, that were there, that somebody changed and which
        therefore were left alone.
    held_out: unlabeled cases of patients that the fold validates.
    confident: mean over the cases of the share of confident voxels per predicted class, by its name.
    warnings: of the dataset, the model and the labels.
    """

    folder: Path
    predicted: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    corrected: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    confident: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def write_pseudo_labels(
    planned: Planned,
    trainer: str,
    folds: list[int | str] | None,
    threshold: float,
    checkpoint: str,
    device: torch.device,
    num_processes: int,
    overwrite: bool = False,
) -> Iterator[tuple[int | str, Written]]:
    """Label the unlabeled scans for each fold with the model of that fold alone.

    Another fold's model was trained on the cases that this fold validates, so its labels, and those of an
    ensemble, would tell the new network about them. Fold "all" validates none: all trained folds label together. What
    is there from the same model and threshold is not predicted again. Everything is checked before the first
    prediction.

    Args:
        folds: numbers or "all"; None for all of ``splits_final.json``.
        overwrite: replace corrected cases, too.

    Yields:
        Each fold when it is done.

    Raises:
        ValueError: no such fold, a threshold outside 0 to 1, a cascade, a model of other plans, labels or splits.
        FileNotFoundError: names every checkpoint that is missing.
        DatasetError: no unlabeled scan, or bad ones, or a leak, or a label of no case, or a correction that no training
            could use.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"The threshold is a probability, 0 to 1, not {threshold}.")
    require_predictable(planned, device)
    raw_folder, preprocessed_folder = planned.dataset.require_raw(), planned.dataset.preprocessed
    dataset_json = planned.dataset.json
    patients = prepare_splits(planned.dataset)
    splits = read_splits(preprocessed_folder)
    folds = (list(range(len(splits))) or ["all"]) if folds is None else folds
    held_out = {fold: validation_patients(preprocessed_folder, fold, patients) for fold in folds}
    plans_name = planned.plans.plans_name
    runs = {
        fold: RunFolder.of(planned.dataset.name, trainer, plans_name, planned.configuration_name, fold)
        for fold in folds
    }
    models = {fold: _models(runs[fold], checkpoint) for fold in folds}
    # nnU-Net's predictor unpickles the checkpoint (weights_only=False), as with every model of its results folder
    check_models([model for several in models.values() for model in several], checkpoint, planned)

    validation = {fold: [] if fold == "all" else sorted(splits[int(fold)]["val"]) for fold in folds}
    warnings = {fold: _check_validation(runs[fold], validation[fold], dataset_json) for fold in folds}
    for fold in folds:
        findings = check_dataset(planned.dataset, num_processes, fold)
        findings.raise_errors(raw_folder.name)
        warnings[fold] += findings.warnings

    cases = unlabeled_cases_for_training(planned, num_processes)
    folders = {fold: pseudo_label_folder(raw_folder, runs[fold]) for fold in folds}
    ending = dataset_json["file_ending"]
    if problems := [line for folder in folders.values() for line in unknown_labels(folder, ending, planned.dataset)]:
        raise DatasetError(problems)

    with_ignore = with_ignore_label(dataset_json)["labels"]
    painted = _values_of_corrections(folders, cases, planned, with_ignore, overwrite)
    images = Manifest.read(planned.unlabeled_folder)
    files = list_unlabeled(raw_folder, dataset_json, images.is_whole) or {}
    for fold in folds:
        origin = Origin(
            trainer=trainer,
            plans=plans_name,
            configuration=planned.configuration_name,
            fold=fold,
            folds=[model.fold for model in models[fold]],
            checkpoint=checkpoint,
            model=model_hash([model.checkpoint(checkpoint) for model in models[fold]]),
            threshold=threshold,
            labels=with_ignore,
            validation=validation[fold],
            versions=versions(),
        )
        folder = folders[fold]
        # scans that were preprocessed elsewhere need not be here
        used = {case: files.get(case, []) for case in without_patients(cases, patients, held_out[fold])}
        written = Written(folder, held_out=sorted(set(cases) - used.keys()), warnings=warnings[fold])
        with locked(folder / ".lock"):
            record = Record.read(folder)
            _label_fold(record, origin, used, images, runs[fold], device, num_processes, overwrite, written)
            _summarize(record, origin, painted[fold], written)
        yield fold, written


def require_predictable(planned: Planned, device: torch.device) -> None:
    """Raises ValueError: a cascade, or a device that is not there."""
    if planned.configuration.previous_stage_name is not None:
        raise ValueError(
            f"{planned.configuration_name} is the second stage of a cascade. Use 2d, 3d_fullres or 3d_lowres."
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("There is no CUDA device here. Use -device cpu.")


def _models(run: RunFolder, checkpoint: str) -> list[RunFolder]:
    """Whose labels may tell the fold nothing of its validation cases."""
    if run.fold != "all":
        return [run]
    folders = sorted(run.model_folder.glob("fold_*"))
    return [model for model in map(RunFolder, folders) if model.checkpoint(checkpoint).exists()] or [run]


def _values_of_corrections(
    folders: dict[int | str, Path], cases: list[str], planned: Planned, labels: dict, overwrite: bool
) -> dict[int | str, set[int]]:
    """What somebody has painted for each fold.

    Raises:
        DatasetError: names every file that no training could use, and why.
    """
    values: dict[int | str, set[int]] = {fold: set() for fold in folders}
    problems = []
    for fold, folder in folders.items():
        record = Record.read(folder)
        for case in cases if not overwrite else ():
            file = folder / (case + planned.dataset.json["file_ending"])
            if not record.is_corrected(case, file):
                continue
            properties = UnlabeledDataset(str(planned.unlabeled_folder), [case]).load_case(case)[3]
            try:
                values[fold] |= set(np.unique(read_label(file, planned.plans, properties, labels)).tolist())
            except BadLabel as e:
                problems.append(str(e))
    if problems:
        raise DatasetError(problems)
    return values


def check_models(models: list[RunFolder], checkpoint: str, planned: Planned) -> None:
    """Whether they are trained, with the plans and labels that there are now.

    Raises:
        FileNotFoundError: names every checkpoint that is missing.
        ValueError: other plans or labels.
    """
    missing = [
        f"{model.checkpoint(checkpoint)} is missing. Run: {model.train_command()}"
        for model in models
        if not model.checkpoint(checkpoint).exists()
    ]
    if missing:
        raise FileNotFoundError("\n".join(("", *missing)))
    model_folder = models[0].model_folder
    of_model = replace(planned, plans=PlansManager(str(model_folder / "plans.json")))
    if of_model.stamp != planned.stamp:
        raise ValueError(
            f"{model_folder} was trained with other plans than {planned.plans.plans_name} now are. Train it again."
        )
    of_training = load_json(str(model_folder / "dataset.json"))
    if any(of_training.get(key) != planned.dataset.json.get(key) for key in ("labels", "regions_class_order")):
        raise ValueError(f"{model_folder} was trained with other labels than dataset.json now has. Train it again.")


def _check_validation(model: RunFolder, split: list[str], dataset_json: dict) -> list[str]:
    """Compare the cases that a model held out with the split, which may have changed since; returns warnings.

    nnU-Net's training ends with a prediction of each held-out case and a summary.

    Raises:
        ValueError: they differ, so the model has learned what the fold now validates.
    """
    folder, fold = model.validation, model.fold
    ending = dataset_json["file_ending"]
    predicted = {file.name.removesuffix(ending) for file in folder.glob(f"*{ending}")}
    is_whole = (folder / "summary.json").exists()
    if fold == "all" or (is_whole and predicted == set(split)):
        return []
    if is_whole or not predicted <= set(split):
        raise ValueError(
            f"The model of {folder.parent} validated other cases than fold {fold} of {SPLITS} now does "
            f"({', '.join(sorted(predicted ^ set(split)))}). Remove {folder} and train the fold again."
        )
    return [f"{folder} has no summary.json: {SPLITS} is taken for the split that the model was trained with."]


def _label_fold(
    record: Record,
    origin: Origin,
    files: dict[str, list[Path]],
    images: Manifest,
    run: RunFolder,
    device: torch.device,
    num_processes: int,
    overwrite: bool,
    written: Written,
) -> None:
    remove_leftovers(record.folder)
    ending = load_json(str(run.model_folder / "dataset.json"))["file_ending"]
    for case in files:
        file = record.folder / (case + ending)
        if record.is_corrected(case, file) and not overwrite:
            written.corrected.append(case)
        elif record.is_current(case, file, origin, image_stamp(images.cases[case])):
            written.current.append(case)
        else:
            written.predicted.append(case)
    if written.predicted:
        for name in (PICTURES, PREDICTIONS):
            (record.folder / name).mkdir(exist_ok=True)
        predictor = load_predictor(run.model_folder, origin.folds, origin.checkpoint, device)
        dataset = UnlabeledDataset(str(images.folder), list(written.predicted))
        with (
            tempfile.TemporaryDirectory(prefix=INCOMING, dir=record.folder) as incoming,
            closing(_predict(predictor, dataset, files, origin, Path(incoming), num_processes)) as predictions,
        ):
            for case, entry in predictions:
                file = record.folder / (case + ending)
                if record.is_corrected(case, file) and not overwrite:  # meanwhile
                    written.predicted.remove(case)
                    written.corrected.append(case)
                    continue
                replaced = sha256_of(file) if file.exists() else None
                image = image_stamp(images.cases[case])
                record.add(case, {**asdict(origin), "image": image, "replaced": replaced, **entry})
                os.replace(Path(incoming) / f"{case}.png", record.folder / PICTURES / f"{case}.png")
                for name in (PREDICTIONS, ""):  # the label last: it says that all is there
                    for part in sorted((Path(incoming) / case / name).glob("*.*")):  # a reader's spacing file, too
                        os.replace(part, record.folder / name / part.name)
                record.cases[case]["replaced"] = None
                record.write()


def _summarize(record: Record, origin: Origin, painted: set[int], written: Written) -> None:
    """Shares of sure voxels, and warnings of what the labels lack; ``painted`` by hand it is not lacking."""
    shares = {case: record.cases[case]["confident"] for case in (*written.predicted, *written.current)}
    fix = f"Use a lower --threshold (it is {origin.threshold:g}), or correct some by hand: {record.folder}"
    if unsure := [case for case, of_case in shares.items() if not any(of_case.values())]:
        written.warnings.append(f"{len(unsure)} of {len(shares)} labels have no sure voxel ({some(unsure)}). {fix}")
    for value, name in value_names(origin.labels).items():
        of_class = [of_case[str(value)] for of_case in shares.values() if of_case.get(str(value)) is not None]
        if value != origin.labels["ignore"] and shares:
            written.confident[name] = float(np.mean(of_class)) if of_class else float("nan")
            if not any(of_class) and value not in painted:
                what, then = ("sure", fix) if of_class else ("predicted", f"Correct some by hand: {record.folder}")
                written.warnings.append(
                    f"no voxel of {name} is {what} in any of {len(shares)} labels, so the training sees it in labeled "
                    f"scans alone. {then}"
                )


def _predict(
    predictor: nnUNetPredictor,
    dataset: UnlabeledDataset,
    files: dict[str, list[Path]],
    origin: Origin,
    incoming: Path,
    num_processes: int,
) -> Generator[tuple[str, dict], None, None]:
    """Predict here, export in the background; no more predictions wait than there are processes."""
    waiting: deque[tuple[str, Future]] = deque()
    with open_pool(num_processes) as pool:
        for case in tqdm(dataset.identifiers, desc=f"Labeling for fold {origin.fold}", disable=not sys.stderr.isatty()):
            data, _, _, properties = dataset.load_case(case)
            logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data[:])).numpy()
            arguments = (logits, properties, predictor.plans_manager.plans, predictor.dataset_json)
            about = f"the pseudo-label of {case}"
            waiting.append((case, pool.submit(about, _export, case, files[case], *arguments, origin, incoming)))
            if len(waiting) > num_processes:
                case, done = waiting.popleft()
                yield case, done.result()
        for case, done in waiting:
            yield case, done.result()


def _export(
    case: str,
    image_files: list[Path],
    logits: np.ndarray,
    properties: dict,
    plans_json: dict,
    dataset_json: dict,
    origin: Origin,
    incoming: Path,
) -> dict:
    """Write ``incoming/CASE/`` (label, whole prediction) and ``incoming/CASE.png``; the case's entry in the record."""
    plans = PlansManager(plans_json)
    label_manager = plans.get_label_manager(dataset_json)
    probabilities = probabilities_in_scan(logits, properties, plans, origin.configuration, dataset_json)
    ignore_label = origin.labels["ignore"]
    label, predicted = confident_labels(probabilities, label_manager, origin.threshold, ignore_label)
    shares = confident_shares(label, predicted, label_manager.all_labels)
    reader = plans.image_reader_writer_class()
    file = incoming / case / (case + dataset_json["file_ending"])
    prediction_file(file).parent.mkdir(parents=True)
    reader.write_seg(label, str(file), properties)
    reader.write_seg(predicted, str(prediction_file(file)), properties)
    check_writable(incoming)  # SimpleITK truncates a NIfTI file on a full disk without a word
    # a scan that was preprocessed elsewhere and is not here has no gray values to show
    image = label * 0 if are_absent(image_files) else reader.read_images([str(f) for f in image_files])[0][0]
    percent = ", ".join(f"{c}: {'-' if share is None else f'{share:.0%}'}" for c, share in shares.items())
    title = f"{case}, fold {origin.fold}: confident (>= {origin.threshold:g}) voxels of predicted class {percent}"
    draw_picture(incoming / f"{case}.png", title, image, label, predicted, ignore_label, properties["spacing"])
    return {"file": sha256_of(file), "prediction": sha256_of(prediction_file(file)), "confident": shares}
