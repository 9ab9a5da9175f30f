"""Pseudo-labels through the steps of nnU-Net's preprocessor, beside the images that are preprocessed already."""

import os
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.nnunet.images import differences, nearest_integers
from nnunetv2_crossmatch.nnunet.labels import value_names
from nnunetv2_crossmatch.nnunet.loaders import UnlabeledDataset
from nnunetv2_crossmatch.nnunet.segmentation import (
    SEGMENTATION_SUFFIXES,
    preprocess_segmentation,
    save_segmentation,
)
from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.manifest import MANIFEST, Manifest
from nnunetv2_crossmatch.preprocessing.reconcile import known_cases, unknown_ids
from nnunetv2_crossmatch.preprocessing.splits import SPLITS
from nnunetv2_crossmatch.self_training.confidence import with_ignore_label
from nnunetv2_crossmatch.self_training.marks import REVIEW, describe_marks, marked_out, read_marks
from nnunetv2_crossmatch.self_training.names import Round
from nnunetv2_crossmatch.self_training.record import FOLDER, RECORD, Origin, Record, image_stamp, is_corrected
from nnunetv2_crossmatch.utilities.errors import DatasetError, some
from nnunetv2_crossmatch.utilities.files import (
    INCOMING,
    check_writable,
    locked,
    remove_leftovers,
    sha256_of,
    write_json,
)
from nnunetv2_crossmatch.utilities.workers import run_in_workers

_ELSEWHERE = "Start the training where the raw scans are, then copy the folder again."


class BadLabel(ValueError):
    """One pseudo-label that cannot be used; the message names it, the reason and the fix."""


def pseudo_labels_for_training(
    planned: Planned,
    fold: int | str,
    cases: list[str],
    validation: list[str],
    teacher: str | None,
    num_processes: int,
) -> tuple[Path, Origin, dict[str, str]]:
    """Preprocess what is missing or stale of one fold's pseudo-labels while the raw folder has them.

    Args:
        cases: the unlabeled cases that this fold may use, preprocessed; those marked bad are not used.
        validation: the labeled ones that it holds out; none for fold "all".
        teacher: the trainer whose pseudo-labels are wanted; None for the only one there is, rounds not counted.

    Returns:
        ``nnUNet_preprocessed/DatasetXXX_NAME/<data_identifier>_pseudo/TRAINER__PLANS__CONFIG/fold_K`` with
        ``CASE_seg.b2nd`` and ``CASE.pkl``; the newest origin among the labels; the SHA-256 of each label file
        that is used, which those that the record leaves out are not.

    Raises:
        DatasetError: no or several sets of pseudo-labels, cases without one, labels that fit neither their
            scan nor the dataset, or are of several models, or of one that validated other cases.
    """
    raw_folder, preprocessed_folder = planned.dataset.raw, planned.dataset.preprocessed
    cache = preprocessed_folder / f"{planned.configuration.data_identifier}_pseudo"
    command = f"{planned.command('pseudo-label')} -f {fold} -tr "
    # labels that somebody removed from the raw folder are still in the cache
    sets, file = (cache, MANIFEST) if raw_folder is None else (raw_folder / FOLDER, RECORD)
    of_fold = f"{teacher or '*'}__{planned.plans.plans_name}__{planned.configuration_name}/fold_{fold}"
    sources = sorted(found.parent for found in sets.glob(f"{of_fold}/{file}"))
    if teacher is None:
        sources = [source for source in sources if Round.parse(source.parent.name.split("__")[0]) is None]
    if not sources:
        raise DatasetError(
            [f"Fold {fold} of {planned.dataset.name} has no pseudo-labels. Run: {command}{teacher or 'nnUNetTrainer'}"]
        )
    if len(sources) > 1:
        raise DatasetError(
            [
                f"Fold {fold} has pseudo-labels of several trainers: {', '.join(map(str, sources))}. Remove all but "
                "one, or say in a subclass which: teacher = 'nnUNetTrainer'."
            ]
        )
    source = sources[0]
    target = cache / source.parent.name / source.name
    stamp = planned.stamp
    dataset_json = with_ignore_label(load_json(str(preprocessed_folder / "dataset.json")))
    if raw_folder is not None:
        if problems := unknown_labels(source, dataset_json["file_ending"], planned.dataset):
            raise DatasetError(problems)
        record = Record.read(source)
        entries, left_out = _with_files(record, dataset_json["file_ending"]), record.left_out
    elif load_json(str(source / MANIFEST))["plans"] == stamp:
        entries, left_out = _preprocessed(target, stamp)
    else:
        raise DatasetError([f"{source} was made with other plans than {planned.plans.plans_name}. {_ELSEWHERE}"])
    bad = marked_out(source, {case: entry["used"] for case, entry in entries.items()})
    for line in describe_marks({case: bad[case] for case in cases if case in bad}, source):
        print(f"{source.name}: {line}")
    cases = [case for case in cases if case not in bad and case not in left_out]
    if bad and not cases:
        raise DatasetError([f"No pseudo-label in {source} is left for a training. Correct some, or label again."])
    entries = {case: entry for case, entry in entries.items() if case in cases}
    origin = Origin.of(_newest(entries)) if entries else None
    command += (
        f"{origin.trainer} -chk {origin.checkpoint} --threshold {origin.threshold:g}"
        if origin is not None
        else source.parent.name.split("__")[0]
    )
    missing = [case for case in cases if case not in entries]
    if missing or origin is None:
        fix = _ELSEWHERE if raw_folder is None else f"Remove those that are there, then run: {command}"
        raise DatasetError([f"{source} lacks {some(missing)}, or {file} does not say what made them. {fix}"])
    images = Manifest.read(planned.unlabeled_folder)
    held_out = [] if fold == "all" else sorted(validation)
    if problems := _unusable(source, entries, images, dataset_json["labels"], held_out):
        raise DatasetError([*problems, f"Run: {command} (it keeps what was corrected by hand; remove that if named)"])
    if raw_folder is not None:
        _bring_up_to_date(entries, left_out, source, target, planned, dataset_json, num_processes)
        if read_marks(target) != (marks := read_marks(source)):
            write_json(marks, target / REVIEW)
    return target, origin, {case: entry["used"] for case, entry in entries.items()}


def unknown_labels(folder: Path, ending: str, dataset: Dataset) -> list[str]:
    """A line that names the labels in a folder that are of no case: a correction under such a name would not count."""
    there = sorted(file.name.removesuffix(ending) for file in folder.glob(f"[!.]*{ending}"))
    return unknown_ids(folder, there, set().union(*known_cases(dataset).values()))


def _with_files(record: Record, ending: str) -> dict[str, dict]:
    """The record's entries whose file is there, "used" being its SHA-256."""
    files = {case: record.folder / (case + ending) for case in record.cases}
    return {case: {**record.cases[case], "used": sha256_of(file)} for case, file in files.items() if file.exists()}


def _preprocessed(target: Path, stamp: str) -> tuple[dict[str, dict], dict[str, str]]:
    """Entries, as by :func:`_with_files`, of what was preprocessed with these plans and is whole; what is left out."""
    content = load_json(str(target / MANIFEST)) if (target / MANIFEST).exists() else {}
    entries = {
        case: entry
        for case, entry in (content["cases"] if content.get("plans") == stamp else {}).items()
        if all((target / (case + suffix)).exists() for suffix in SEGMENTATION_SUFFIXES)
    }
    return entries, content.get("left_out", {})


def _newest(entries: dict[str, dict]) -> dict:
    """The last that was not corrected, if there is any."""
    return sorted(entries.values(), key=lambda entry: not is_corrected(entry, entry["used"]))[-1]


def _unusable(
    source: Path, entries: dict[str, dict], images: Manifest, labels: dict, validation: list[str]
) -> list[str]:
    """Why labels may not be used, a line each."""
    made_by = [_newest(entries)[key] for key in ("model", "threshold")]

    def is_of_another_model(entry: dict) -> bool:
        if is_corrected(entry, entry["used"]):
            return False
        return entry["used"] != entry["file"] or [entry["model"], entry["threshold"]] != made_by

    reasons = {
        "other labels than dataset.json now has": lambda case, entry: entry["labels"] != labels,
        "scans that have changed since": lambda case, entry: entry["image"] != image_stamp(images.cases[case]),
        f"a model that validated other cases than the fold of {SPLITS} now does (train it again)": (
            lambda case, entry: entry["validation"] != validation
        ),
        "another model or threshold than the newest": lambda case, entry: is_of_another_model(entry),
    }
    found = {reason: [case for case in entries if applies(case, entries[case])] for reason, applies in reasons.items()}
    return [
        f"{len(cases)} of {len(entries)} pseudo-labels in {source} are of {reason}: {some(cases)}."
        for reason, cases in found.items()
        if cases
    ]


def _bring_up_to_date(
    entries: dict[str, dict],
    left_out: dict[str, str],
    source: Path,
    target: Path,
    planned: Planned,
    dataset_json: dict,
    num_processes: int,
) -> None:
    stamp = planned.stamp
    if _preprocessed(target, stamp) == (entries, left_out):  # no lock: the folder may be read-only
        return
    with locked(target / ".lock"):
        remove_leftovers(target)
        there, _ = _preprocessed(target, stamp)
        done = {case for case, entry in entries.items() if there.get(case) == entry}

        def write() -> None:
            cases = {case: entry for case, entry in entries.items() if case in done}
            write_json({"plans": stamp, "cases": cases, "left_out": left_out}, target / MANIFEST)

        write()
        of_all = planned.plans.plans, planned.configuration_name, dataset_json
        jobs = {
            case: (source / (case + dataset_json["file_ending"]), planned.unlabeled_folder, target, case, *of_all)
            for case in entries
            if case not in done
        }
        problems = []
        try:
            description = f"Preprocessing pseudo-labels {planned.configuration_name}"
            with closing(run_in_workers(preprocess_pseudo_label, jobs, num_processes, description)) as finished:
                for case, future in finished:
                    try:
                        future.result()
                        done.add(case)
                    except BadLabel as e:
                        problems.append(str(e))
        finally:
            write()
    if problems:
        raise DatasetError(sorted(problems))


def preprocess_pseudo_label(
    file: Path, images: Path, target: Path, case: str, plans_json: dict, configuration_name: str, dataset_json: dict
) -> None:
    """Write ``target/CASE_seg.b2nd`` (1, z, y, x) and ``CASE.pkl``, each whole or not at all.

    The mask of nonzero voxels is that of the preprocessed image.

    Args:
        images: folder of the preprocessed unlabeled cases.
        dataset_json: with an ignore label.

    Raises:
        BadLabel: not readable, another shape, spacing, origin or orientation than the scan's, a label that the
            dataset does not have.
    """
    plans = PlansManager(plans_json)
    data, mask, _, properties = UnlabeledDataset(str(images), [case]).load_case(case)
    seg = read_label(file, plans, properties, dataset_json["labels"])
    seg, properties = preprocess_segmentation(
        seg, data.shape[1:], mask[:] < 0, properties, plans, configuration_name, dataset_json
    )
    patch = tuple(plans.get_configuration(configuration_name).patch_size)
    with tempfile.TemporaryDirectory(prefix=INCOMING, dir=target) as incoming:
        try:
            save_segmentation(seg, properties, Path(incoming) / case, patch)
        except Exception:
            check_writable(target)
            raise
        for suffix in SEGMENTATION_SUFFIXES:
            os.replace(Path(incoming) / (case + suffix), target / (case + suffix))


def read_label(file: Path, plans: PlansManager, properties: dict, labels: dict) -> np.ndarray:
    """A pseudo-label that somebody may have painted on, (1, z, y, x) int16.

    Args:
        properties: of its preprocessed scan.
        labels: dataset.json's, with an ignore label.

    Raises:
        BadLabel: see :func:`preprocess_pseudo_label`.
    """
    fix = "Correct it, or remove it and run nnUNetv2_crossmatch pseudo-label again."
    try:
        seg, own = plans.image_reader_writer_class().read_seg(str(file))
    except Exception as e:
        raise BadLabel(f"{file} cannot be read ({e}). {fix}") from e
    shape = tuple(np.array(properties["shape_before_cropping"])[list(plans.transpose_backward)])
    if seg.shape[1:] != shape or not np.allclose(own["spacing"], properties["spacing"], rtol=1e-3):
        raise BadLabel(
            f"{file} has shape {seg.shape[1:]} and spacing {own['spacing']}, its scan {shape} and "
            f"{properties['spacing']}. {fix}"
        )
    if set(differences(own, properties)) & {"origin", "orientation"}:
        raise BadLabel(f"{file} has another origin or orientation than its scan. {fix}")
    seg = nearest_integers(seg)
    names = value_names(labels)
    if foreign := sorted(set(np.unique(seg).tolist()) - names.keys()):
        found = " and ".join(f"{value:g}" for value in foreign)
        allowed = ", ".join(f"{value} ({name})" for value, name in names.items())
        raise BadLabel(f"{file} has the value {found}. Allowed are {allowed}. {fix}")
    return seg.astype(np.int16)
