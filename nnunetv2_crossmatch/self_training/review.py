"""A page to look at the pseudo-labels of a fold."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.preprocessing.dataset import Planned
from nnunetv2_crossmatch.preprocessing.listing import list_unlabeled
from nnunetv2_crossmatch.self_training.confidence import with_ignore_label
from nnunetv2_crossmatch.self_training.marks import read_marks
from nnunetv2_crossmatch.self_training.page import Page, Shown, colors, thumbnail_of_files, value_names, write_page
from nnunetv2_crossmatch.self_training.record import FOLDER, RECORD, Origin, Record, is_corrected, pseudo_label_folder
from nnunetv2_crossmatch.utilities.errors import DatasetError
from nnunetv2_crossmatch.utilities.files import sha256_of
from nnunetv2_crossmatch.utilities.workers import run_in_workers

PAGE = "review.html"


def doubt(confident: Mapping[str, float | None]) -> float:
    """1 - the mean over the predicted foreground classes of their share of confident voxels; 1 if there are none.

    Args:
        confident: share by value of the mask, as in a :class:`Record`.
    """
    known = [share for value, share in confident.items() if value != "0" and share is not None]
    return 1 - float(np.mean(known)) if known else 1.0


def labeled_folds(planned: Planned, trainer: str) -> list[int | str]:
    """Folds that have pseudo-labels of a trainer's models."""
    model = RunFolder.of(planned.dataset.name, trainer, planned.plans.plans_name, planned.configuration_name, 0)
    found = (planned.dataset.require_raw() / FOLDER / model.model_folder.name).glob(f"fold_*/{RECORD}")
    return [RunFolder(file.parent).fold for file in sorted(found)]


def write_review_page(planned: Planned, trainer: str, fold: int | str, num_processes: int) -> tuple[Path, int, str]:
    """A page with all pseudo-labels of a fold, the most doubtful first, beside them.

    Returns:
        The page, how many labels it shows, and the command that takes the marks back.

    Raises:
        DatasetError: the fold has no pseudo-labels; a label cannot be read.
    """
    dataset, plans = planned.dataset, planned.plans
    raw, ending = dataset.require_raw(), dataset.json["file_ending"]
    model = RunFolder.of(dataset.name, trainer, plans.plans_name, planned.configuration_name, fold)
    folder = pseudo_label_folder(raw, model)
    command = f"{planned.command('pseudo-label')} -f {fold} -tr {trainer}"
    record = Record.read(folder)
    labels = {case: file for case in record.cases if (file := folder / (case + ending)).exists()}
    if not labels:
        raise DatasetError([f"{folder} has no pseudo-labels. Run: {command}"])
    origin = Origin.of(list(record.cases.values())[-1])  # other options would label the scans anew
    command += f" -chk {origin.checkpoint} --threshold {origin.threshold:g} --review DOWNLOADED.json"
    listed = list_unlabeled(raw, dataset.json, lambda case: case in labels) or {}
    names = value_names(dataset.json["labels"])
    ignore = with_ignore_label(dataset.json)["labels"]["ignore"]
    jobs = {
        case: (listed.get(case, []), file, plans.plans, list(names), ignore)
        for case, file in labels.items()
        if case in listed
    }
    pictures = {}
    with closing(run_in_workers(thumbnail_of_files, jobs, num_processes, "Drawing")) as done:
        for case, future in done:
            try:
                pictures[case] = future.result()
            except Exception as e:
                raise DatasetError([f"{labels[case]} cannot be shown over its scan ({e}). Correct it."]) from e
    before = read_marks(folder)
    shown = []
    doubts = {case: doubt(record.cases[case]["confident"]) for case in pictures}
    for case in sorted(pictures, key=lambda case: (-doubts[case], case)):
        entry, sha = record.cases[case], sha256_of(labels[case])
        notes = ["corrected by hand; the numbers are those of the label before"] if is_corrected(entry, sha) else []
        notes += [f"left out of the training: {why}"] if (why := record.left_out.get(case)) else []
        of_classes = {name: entry["confident"].get(str(value)) for value, name in names.items()}
        scan = listed[case][0]
        saved = before.get(case, {})
        mark = saved["mark"] if saved.get("label") == sha else ""
        shown.append(Shown(case, doubts[case], of_classes, scan, labels[case], pictures[case], notes, sha, mark))
    review = {"dataset": dataset.name, "model": model.model_folder.name, "fold": fold}
    page = Page(
        title=f"{dataset.name}: pseudo-labels of {trainer}, fold {fold}",
        lines=[
            f"{len(shown)} scans, the most doubtful first. Shaded voxels are not sure enough to be learned from.",
            "Mark what you look at. Bad ones are left out of the training; so are those to correct, until you have "
            "saved a corrected label under the same name. What has no mark is used.",
        ],
        share="sure",
        legend={name: colors(names)[value] for value, name in names.items()},
        next_command=command,
        review=review,
    )
    write_page(page, shown, folder / PAGE)
    return folder / PAGE, len(shown), command
