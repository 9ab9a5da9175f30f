"""A folder of predictions against a folder of references."""

import os
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.evaluation.case import BadMask, measure_case
from nnunetv2_crossmatch.evaluation.summary import Evaluation
from nnunetv2_crossmatch.nnunet.images import find_reader
from nnunetv2_crossmatch.nnunet.labels import read_labels
from nnunetv2_crossmatch.utilities.dataset_json import read_dataset_json
from nnunetv2_crossmatch.utilities.errors import DatasetError, some
from nnunetv2_crossmatch.utilities.files import is_unicode
from nnunetv2_crossmatch.utilities.folders import read_folder
from nnunetv2_crossmatch.utilities.workers import run_in_workers


def evaluate_folders(
    reference: Path,
    prediction: Path,
    dataset_json: Path | None = None,
    num_processes: int = 8,
    cases: Collection[str] | None = None,
) -> Evaluation:
    """Measure every reference's prediction, files of the same name being a pair.

    The spacing is that of the scan, which is looked for in ``imagesTs`` beside a folder ``labelsTs``; without it the
    prediction's, which nnU-Net copies from the scan. The reference's header often says something else.

    Args:
        reference: masks such as ``labelsTs``.
        prediction: what nnUNetv2_predict wrote. The reader is that of its ``plans.json``, or without one the
            reader that nnU-Net would choose.
        dataset_json: labels, regions and file ending; by default ``dataset.json`` of the predictions.
        cases: of the references, those that are meant; all by default.

    Raises:
        DatasetError: no dataset.json, an empty folder, missing predictions; masks of another size than their
            reference, with labels outside the map or unreadable (all of them, after the others were measured).
        RuntimeError: a worker was killed.
    """
    reference, prediction = (Path(os.path.abspath(folder)) for folder in (reference, prediction))  # a link stays one
    labels_file = dataset_json or prediction / "dataset.json"
    if not labels_file.is_file():
        raise DatasetError([f"{labels_file} is missing. Name the dataset's own with -djfile."])
    dataset = read_dataset_json(labels_file, needs_channels=False)
    (references, left_out), (predictions, _) = (
        _masks(folder, dataset["file_ending"]) for folder in (reference, prediction)
    )
    if cases is not None:
        if absent := sorted(set(cases) - references.keys()):
            raise DatasetError(f"{reference / (case + dataset['file_ending'])} is missing." for case in absent)
        references = {case: file for case, file in references.items() if case in cases}
    if missing := sorted(references.keys() - predictions.keys()):
        numbered = [case for case in missing if f"{case}_0000" in predictions]
        why = " A prediction is called as its case, without a channel number: rename them." if numbered else ""
        raise DatasetError(
            [
                f"{prediction} has no prediction for {len(missing)} of {len(references)} masks in {reference}: "
                f"{some(missing)}.{why}"
            ]
        )

    examples = [file for file in references.values() if is_unicode(file)][:1]
    reader, labels = _reader(prediction, dataset, examples), read_labels(dataset)
    measured, problems = {}, []
    jobs = {
        case: (file, predictions[case], reader, labels, _scan(file, dataset["file_ending"]))
        for case, file in references.items()
    }
    with closing(run_in_workers(measure_case, jobs, num_processes, "Evaluating")) as done:
        for case, future in done:
            try:
                measured[case] = future.result()
            except BadMask as e:
                problems.append(str(e))
    if problems:
        raise DatasetError(sorted(problems))
    return Evaluation(
        cases=list(references),
        classes=list(labels.classes),
        values=np.stack([measured[case].values for case in references]),
        missed=np.stack([measured[case].missed for case in references]),
        in_reference=np.stack([measured[case].in_reference for case in references]),
        extra=sorted(predictions.keys() - references.keys()),
        left_out=left_out,
        odd_headers={file: what for case in references for file, what in measured[case].odd.items()},
        without_spacing=isinstance(reader, NaturalImage2DIO),
    )


def _scan(reference: Path, file_ending: str) -> Path | None:
    """The first channel of the scan, if it is where nnU-Net's raw datasets have it."""
    folder = reference.parent.with_name(reference.parent.name.replace("labels", "images", 1))
    names = f"{reference.name.removesuffix(file_ending)}_0000{file_ending}", reference.name
    return next((scan for name in names if (scan := folder / name).exists() and scan != reference), None)


def header_warnings(odd: Mapping[Path, str]) -> list[str]:
    """A line for each folder.

    Args:
        odd: see :class:`~nnunetv2_crossmatch.evaluation.summary.Evaluation`.
    """
    lines = []
    for folder in dict.fromkeys(file.parent for file in odd):
        named = [f"{file.name} ({what})" for file, what in odd.items() if file.parent == folder]
        lines.append(
            f"{len(named)} masks in {folder} have an odd header: {some(named)}. They are compared voxel by voxel, with "
            "the scan's spacing: look at one of them over its scan."
        )
    return lines


def _masks(folder: Path, file_ending: str) -> tuple[dict[str, Path], list[str]]:
    """The masks, and what else lies there."""
    found = read_folder(folder, file_ending) if folder.is_dir() else None
    if found is None or not found.files:
        none = f"{folder} holds no {file_ending} file, which is the ending that dataset.json names."
        raise DatasetError([none, *(found.left_out if found is not None else [])])
    return {file.name.removesuffix(file_ending): file for file in found.files}, found.left_out


def _reader(prediction: Path, dataset: dict, examples: list[Path]) -> BaseReaderWriter:
    plans = prediction / "plans.json"
    if plans.is_file():
        return PlansManager(str(plans)).image_reader_writer_class()
    return find_reader(dataset, examples)()
