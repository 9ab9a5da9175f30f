"""Any labeled nnU-Net dataset as a semi-supervised one: what if only some of the labels were there?"""

import math
import random
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_crossmatch.dataset_conversion.common import new_dataset, require, require_free
from nnunetv2_crossmatch.nnunet.images import files_beside
from nnunetv2_crossmatch.preprocessing.content import LABELED
from nnunetv2_crossmatch.preprocessing.listing import labeled_and_held_out, left_out, list_unlabeled
from nnunetv2_crossmatch.preprocessing.reconcile import of_no_case
from nnunetv2_crossmatch.preprocessing.splits import PATIENTS, read_patients
from nnunetv2_crossmatch.utilities.dataset_json import read_dataset_json
from nnunetv2_crossmatch.utilities.errors import DatasetError, printable
from nnunetv2_crossmatch.utilities.files import write_json


def hide_labels(
    source: Path, dataset_id: int, numbers: Sequence[str], seed: int = 0, group_by: str | None = None
) -> list[Path]:
    """Write datasets in which so many training cases of ``source`` have labels and the others do not.

    No image is copied: dataset.json and unlabeled.json name the source's files, held-out folders
    (imagesTs, labelsTs, ...) and the hidden labels in labelsUn are links. Unlabeled scans of the source stay so.

    Args:
        source: a raw dataset folder.
        dataset_id: of the first new dataset; the others' follow.
        numbers: rising, for a dataset each; with %, a share; of patients where they are known, of cases otherwise.
        seed: of the draw; the same order for any number, so 4 labeled ones are among 10.
        group_by: regular expression; cases with the same match (its first group, if it has one) are one patient.
            Without it the source's patients.json counts.

    Returns:
        The new raw dataset folders.

    Raises:
        DatasetError: a number out of range, or not above the one before; typing errors in patients.json; an expression
            that does not match a training case; missing files.
        FileExistsError: a dataset with one of these ids is there already. Nothing is written then.
    """
    source = source.resolve()
    dataset_json = read_dataset_json(source / "dataset.json")
    parts = labeled_and_held_out(source, dataset_json)
    # nnU-Net takes the ._files of a Mac for cases
    found = get_filenames_of_train_images_and_targets(str(source), dataset_json)
    cases = {case: entry for case, entry in found.items() if case in parts[LABELED]}
    unlabeled = list_unlabeled(source, dataset_json) or {}
    for line in left_out(source, dataset_json):
        print(f"warning: {printable(line)}", file=sys.stderr)
    require(
        (Path(file) for entry in cases.values() for file in (*entry["images"], entry["label"])),
        "files of labeled cases",
    )
    known = {case for scans in (cases, unlabeled, *parts.values()) for case in scans}
    if group_by:
        patients = _grouped(group_by, {*cases, *unlabeled}, known)
    else:
        patients = read_patients(source)
        problems, warnings = of_no_case(source / PATIENTS, patients, known)
        for line in warnings:
            print(f"warning: {printable(line)}", file=sys.stderr)
        if problems:
            raise DatasetError(problems)
    draws = [_draw(sorted(cases), patients, number, seed) for number in numbers]
    if any(len(fewer) >= len(more) for fewer, more in pairwise(draws)):
        raise DatasetError([f"{' '.join(numbers)}: each number must be larger than the one before."])
    for target in range(dataset_id, dataset_id + len(draws)):
        require_free(target)
    return [
        _write(source, target, dataset_json, cases, unlabeled, patients, chosen)
        for target, chosen in enumerate(draws, dataset_id)
    ]


def _write(
    source: Path,
    dataset_id: int,
    dataset_json: dict,
    cases: dict[str, dict],
    unlabeled: dict[str, list[Path]],
    patients: dict[str, str],
    chosen: set[str],
) -> Path:
    unlabeled = dict(unlabeled)
    with new_dataset(dataset_id, source.name.split("_", 1)[1]) as folder:
        for case in sorted(set(cases) - chosen):
            unlabeled[case] = [Path(image) for image in cases[case]["images"]]
            label = Path(cases[case]["label"])
            _link(label, folder / "labelsUn" / f"{case}{dataset_json['file_ending']}")
            for beside in files_beside(label):
                _link(beside, folder / "labelsUn" / f"{case}{beside.suffix}")
        write_json(
            {case: {"images": [str(f.resolve()) for f in files]} for case, files in sorted(unlabeled.items())},
            folder / "unlabeled.json",
        )
        entries = {case: cases[case] for case in sorted(chosen)}
        write_json({**dataset_json, "numTraining": len(chosen), "dataset": entries}, folder / "dataset.json")
        if patients:
            write_json(patients, folder / PATIENTS)
        for part in source.iterdir():
            if re.fullmatch(r"(images|labels)(?!Tr|Un).+", part.name) and part.is_dir():
                _link(part, folder / part.name)
    return folder


def _grouped(group_by: str, training: set[str], known: set[str]) -> dict[str, str]:
    try:
        matches = {case: re.search(group_by, case) for case in sorted(known)}
    except re.error as e:
        raise DatasetError([f"--group-by {group_by!r} is no regular expression: {e}."]) from None
    groups = {case: (match[1] if match.re.groups else match[0]) or "" for case, match in matches.items() if match}
    if unmatched := sorted(case for case in training if not groups.get(case)):
        raise DatasetError([f"--group-by {group_by!r} does not match {', '.join(unmatched)}."])
    return {case: group for case, group in groups.items() if group}


def _draw(cases: list[str], patients: dict[str, str], labeled: str, seed: int) -> set[str]:
    by_patient = defaultdict(list)
    for case in cases:
        by_patient[patients.get(case, case)].append(case)
    names = sorted(by_patient)
    try:
        number = math.ceil(float(labeled[:-1]) / 100 * len(names)) if labeled.endswith("%") else int(labeled)
    except (ValueError, OverflowError):
        raise DatasetError([f"{labeled}: give a number, or a share such as 10%."]) from None
    if not 0 < number < len(names):
        what = "patients" if patients else "cases"
        raise DatasetError([f"{labeled}: there are {len(names)} labeled {what}, and some must be left over."])
    random.Random(seed).shuffle(names)
    return {case for name in names[:number] for case in by_patient[name]}


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target.resolve(), target.is_dir())
