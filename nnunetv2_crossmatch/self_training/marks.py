"""What somebody said of the pseudo-labels of a fold, on the page that ``review`` writes."""

from collections.abc import Mapping
from pathlib import Path

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.preprocessing.dataset import Planned
from nnunetv2_crossmatch.preprocessing.listing import labeled_scans
from nnunetv2_crossmatch.preprocessing.reconcile import unknown_ids
from nnunetv2_crossmatch.self_training.record import RECORD, Record, pseudo_label_folder
from nnunetv2_crossmatch.utilities.errors import DatasetError, some
from nnunetv2_crossmatch.utilities.files import locked, read_json, sha256_of, write_json

REVIEW = "review.json"  # beside the labels: {case: {"mark": one of MARKS, "label": SHA-256 of what was looked at}}
GOOD, BAD, TO_CORRECT = MARKS = ("good", "bad", "to correct")


def take_review(planned: Planned, trainer: str, file: Path) -> tuple[int | str, dict[str, dict]]:
    """Note the marks that a page saved, beside the labels; later marks replace or withdraw earlier ones.

    Returns:
        The fold, and the marks of the file but for those of scans that are labeled now.

    Raises:
        DatasetError: not such a file, one of another dataset or model, a case that has no pseudo-label.
    """
    content = read_json(file)
    expected = RunFolder.of(planned.dataset.name, trainer, planned.plans.plans_name, planned.configuration_name, 0)
    try:
        model, fold, marks = content["model"], content["fold"], content["marks"]
        whole = all(entry["mark"] in (*MARKS, None) and isinstance(entry["label"], str) for entry in marks.values())
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DatasetError([f"{file} has no marks. Save it with the button of the page that review writes."])
    of = expected.model_folder.name
    if (content.get("dataset"), model) != (planned.dataset.name, of):
        raise DatasetError([f"{file} is of {content.get('dataset')}, {model}, not of {planned.dataset.name}, {of}."])
    folder = pseudo_label_folder(planned.dataset.require_raw(), RunFolder(expected.model_folder / f"fold_{fold}"))
    if not (folder / RECORD).exists():
        raise DatasetError([f"{file} is of fold {fold}, which has no pseudo-labels in {folder}."])
    labeled = labeled_scans(planned.dataset.require_raw(), planned.dataset.json)
    marks = {case: entry for case, entry in marks.items() if case not in labeled}
    if problems := unknown_ids(file, marks, Record.read(folder).cases, "pseudo-labeled case"):
        raise DatasetError(problems)
    with locked(folder / ".lock"):
        noted = {**read_marks(folder), **marks}
        write_json({case: entry for case, entry in noted.items() if entry["mark"]}, folder / REVIEW)
    return fold, marks


def read_marks(folder: Path) -> dict[str, dict]:
    """What was taken back of a folder's labels; empty before the first time."""
    return read_json(folder / REVIEW) if (folder / REVIEW).exists() else {}


def marked_out(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """{case: mark} of labels that no training may use: bad, or to be corrected and not corrected yet.

    A mark is of one label. Whoever corrects it, or has the scan labeled anew, has another one.

    Args:
        files: SHA-256 of each label that is there.
    """
    return {
        case: entry["mark"]
        for case, entry in read_marks(folder).items()
        if entry["mark"] != GOOD and files.get(case) in (None, entry["label"])
    }


def marked_out_now(folder: Path, ending: str) -> dict[str, str]:
    """:func:`marked_out` by the labels as they lie in the folder."""
    files = {case: folder / (case + ending) for case in read_marks(folder)}
    return marked_out(folder, {case: sha256_of(file) for case, file in files.items() if file.exists()})


def describe_marks(marks: Mapping[str, str], folder: Path) -> list[str]:
    """A line for each kind of :func:`marked_out`."""
    what = {
        BAD: "marked bad and left out of the training",
        TO_CORRECT: f"left out until they are corrected in {folder}",
    }
    kinds = {mark: [case for case, its in marks.items() if its == mark] for mark in what}
    return [f"{len(cases)} {what[mark]}: {some(cases)}." for mark, cases in kinds.items() if cases]
