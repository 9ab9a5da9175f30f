"""Case ids that somebody wrote down against the cases that there are: an id that is none would count for nothing."""

import json
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from nnunetv2_crossmatch.preprocessing.content import LABELED, UNLABELED, read_content
from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.preprocessing.listing import labeled_and_held_out, unlabeled_ids
from nnunetv2_crossmatch.preprocessing.manifest import MANIFEST, Manifest
from nnunetv2_crossmatch.preprocessing.splits import (
    PATIENTS,
    SPLITS,
    ensure_splits,
    known_patients,
    new_splits,
    read_splits,
)
from nnunetv2_crossmatch.utilities.errors import DatasetError, some
from nnunetv2_crossmatch.utilities.files import locked, write_json
from nnunetv2_crossmatch.utilities.near import nearest as nearest_name
from nnunetv2_crossmatch.utilities.near import plain

_COMPARED = 20  # ids of patients.json at most, of different forms: each takes as long as there are cases


def prepare_splits(
    dataset: Dataset, labeled: Collection[str] | None = None, fold: int | str | None = None
) -> dict[str, str]:
    """The patients, after writing ``splits_final.json`` unless there is one; ids that are no case stop it before.

    Args:
        labeled: ids of the labeled cases that are preprocessed; by default those of the raw folder.
        fold: that is trained; "all" needs no split.

    Raises:
        DatasetError: see :func:`reconcile`.
    """
    patients = known_patients(dataset.raw, dataset.preprocessed)
    parts = known_cases(dataset)
    errors, _ = reconcile(dataset, patients, parts, parts.get(LABELED, ()) if labeled is None else labeled, fold)
    if labeled is not None and fold != "all":
        errors += _not_preprocessed(dataset, parts, labeled)
    labeled = parts.get(LABELED, set()) if labeled is None else labeled
    if errors:
        raise DatasetError(errors)
    ensure_splits(dataset.preprocessed, list(labeled), patients)
    _as_nnunet_reads_it(dataset.preprocessed / SPLITS)
    return patients


def known_cases(dataset: Dataset) -> dict[str, set[str]]:
    """Case ids of every part; without the raw folder those that were last seen."""
    if dataset.raw is not None:
        parts = {part: set(scans) for part, scans in labeled_and_held_out(dataset.raw, dataset.json).items()}
        return {**parts, UNLABELED: unlabeled_ids(dataset.raw, dataset.json)}
    parts = {part: set(cases) for part, cases in read_content(dataset.preprocessed).items()}
    preprocessed = (Manifest.read(file.parent) for file in dataset.preprocessed.glob(f"*/{MANIFEST}"))
    parts[UNLABELED] = parts.get(UNLABELED, set()).union(*(manifest.cases for manifest in preprocessed))
    return parts


def _preprocessed_ids(folder: Path) -> set[str]:
    """Labeled cases that nnU-Net has preprocessed, for whichever configuration."""
    files = folder.glob("*/*.pkl")  # beside the arrays in each of its formats
    return {file.stem for file in files if not file.parent.name.endswith(("_unlabeled", "_pseudo"))}


def _not_preprocessed(dataset: Dataset, parts: dict[str, set[str]], labeled: Collection[str]) -> list[str]:
    """Raw cases in folds that a training would look for in vain; others are no case at all, which is said elsewhere."""
    known = parts.get(LABELED, set()) | _preprocessed_ids(dataset.preprocessed)
    mentioned = _mentioned(read_splits(dataset.preprocessed))
    if not (missing := sorted((mentioned & known).difference(labeled))):
        return []
    return [
        f"{dataset.preprocessed / SPLITS}: cases that are not preprocessed: {len(missing)} ({some(missing)}). "
        f"Run nnUNetv2_plan_and_preprocess -d {dataset.id}. {new_splits(dataset.preprocessed)}"
    ]


def _mentioned(splits: list[dict[str, list[str]]]) -> set[str]:
    return {case for split in splits for cases in (split["train"], split["val"]) for case in cases}


def reconcile(
    dataset: Dataset,
    patients: dict[str, str],
    parts: dict[str, set[str]],
    labeled: Collection[str],
    fold: int | str | None = None,
) -> tuple[list[str], list[str]]:
    """Compare ``patients.json`` and ``splits_final.json`` with the cases.

    Args:
        parts: see :func:`known_cases`.
        labeled: ids that folds should have; they may have all labeled cases that are in imagesTr or preprocessed.
        fold: that is trained; "all" needs no split.

    Returns:
        Errors: ids that are probably typing errors, with the case that is meant; ids in folds that are no labeled
        case; a case on both sides of a fold. Warnings: other ids of patients.json that are no case; labeled cases that
        are in no fold; cases in folds that are gone from imagesTr, with which nnU-Net trains on.

    Raises:
        DatasetError: a file that is not of its form.
    """
    errors, warnings = [], []
    folder = dataset.preprocessed
    of_folds = _preprocessed_ids(folder).union(labeled, parts.get(LABELED, ()))
    everywhere = of_folds.union(*parts.values())
    if dataset.raw is not None or LABELED in read_content(folder):  # else it is not known which cases there are
        file = (dataset.raw or folder) / PATIENTS
        wrong, other = of_no_case(file if file.exists() else folder / PATIENTS, patients, everywhere)
        errors += wrong
        warnings += other
    splits = [] if fold == "all" else read_splits(folder)
    if splits and of_folds:
        file = folder / SPLITS
        renew = new_splits(folder)
        mentioned = _mentioned(splits)
        errors += [f"{line} {renew}" for line in unknown_ids(file, sorted(mentioned), of_folds, "labeled case")]
        if dataset.raw is not None and (gone := sorted((mentioned & of_folds) - parts[LABELED])):
            warnings.append(
                f"{file}: preprocessed cases that are not in imagesTr any more: {len(gone)} ({some(gone)}). They are "
                f"trained with. If they should not be, run nnUNetv2_plan_and_preprocess -d {dataset.id}. {renew}"
            )
        for i, split in enumerate(splits):
            if both := sorted(set(split["train"]) & set(split["val"])):
                errors.append(f"{file}: fold {i} trains and validates {some(both)}. {renew}")
        if missing := sorted(set(labeled) - mentioned):
            warnings.append(
                f"{file}: {len(missing)} labeled cases are in no fold, so nothing is learned from them "
                f"({some(missing)}). If they were annotated since, run nnUNetv2_plan_and_preprocess "
                f"-d {dataset.name} first. {renew}"
            )
    return errors, warnings


def unknown_ids(file: Path, ids: Iterable[str], known: Collection[str], what: str = "case") -> list[str]:
    """A line that names the ids of a file that are none of the known ones; no line if there are none."""
    unknown = [case for case in ids if case not in known]
    if not unknown:
        return []
    nearest = finder(known)
    first = [f"{case!r}" + (f" (nearest: {near!r})" if (near := nearest(case)) else "") for case in unknown[:3]]
    are = f"is no {what}" if len(unknown) == 1 else f"are no {what}s"
    shown = some([*first, *unknown[3:]])
    return [f"{file}: {len(unknown)} {are} of the dataset: {shown}. Correct or remove what is there."]


def of_no_case(file: Path, ids: Collection[str], known: Collection[str]) -> tuple[list[str], list[str]]:
    """Errors and warnings: ids of ``patients.json`` that are probably typing errors, and others that are no case.

    The file may be of a whole hospital, test scans may be elsewhere, and cases be removed: such ids harm nobody. A
    typing error leaves the case that is meant without an entry, and is more than another number (but 01 is 1).
    """
    unknown = [case for case in ids if case not in known]
    nameless = set(known).difference(ids)
    forms, numbers = {_form(case) for case in known}, {_unpadded(case) for case in nameless}
    spelled, alike = finder(nameless, by_spelling_only=True), finder(nameless)
    of_form = {_form(case): case for case in reversed(unknown) if _form(case) not in forms}
    near = {form for form, case in list(of_form.items())[-_COMPARED:] if alike(case)}
    typed = {case for case in unknown if spelled(case) or _unpadded(case) in numbers or _form(case) in near}
    errors = unknown_ids(file, [case for case in unknown if case in typed], nameless)
    if not (rest := [case for case in unknown if case not in typed]):
        return errors, []
    are = "id is of no case" if len(rest) == 1 else "ids are of no case"
    return errors, [f"{file}: {len(rest)} {are} of the dataset that is here ({some(rest)}). They are not used."]


def finder(known: Collection[str], by_spelling_only: bool = False) -> Callable[[str], str | None]:
    """Finds the case that an id probably means: the same but for its spelling, else one that is alike."""
    by_form = {plain(case): str(case) for case in sorted(known)}  # nnU-Net has ids of numpy

    def nearest(case: str) -> str | None:
        whole = plain(case)
        name = re.split(r"[/\\]", whole)[-1]
        stem = re.sub(r"\.(nii(\.gz)?|nrrd|mha|png|bmp|tiff?|npz|npy|b2nd)$", "", name)
        for written in (whole, name, stem, re.sub(r"_\d{4}$", "", stem)):
            if written in by_form:
                return by_form[written]
        if by_spelling_only:
            return None
        near = nearest_name(whole, by_form) or nearest_name(stem, by_form)
        if near is None:  # scan1_corrected
            near = max((known for known in by_form if stem.startswith(known)), key=len, default=None)
        return None if near is None else by_form[near]

    return nearest


def _form(name: str) -> str:
    return re.sub(r"\d+", "0", plain(name))


def _unpadded(name: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", plain(name))


def _as_nnunet_reads_it(splits: Path) -> None:
    """nnU-Net's trainer reads UTF-8 alone, without a byte order mark."""
    if not splits.exists():
        return
    try:
        json.loads(splits.read_text(encoding="utf-8"))
    except ValueError:
        with locked(splits.with_name(f".{SPLITS}.lock")):
            write_json(read_splits(splits.parent), splits)
