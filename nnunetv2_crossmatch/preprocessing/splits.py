"""Cross-validation splits that keep a patient's scans together."""

import shlex
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_crossmatch.utilities.errors import DatasetError, some
from nnunetv2_crossmatch.utilities.files import locked, read_json, write_json

PATIENTS = "patients.json"  # in the raw dataset folder: {case id: patient}
SPLITS = "splits_final.json"


def known_patients(raw_folder: Path | None, preprocessed_folder: Path) -> dict[str, str]:
    """Patient of each case as far as known; empty without a patients.json.

    The raw folder's file is copied to the preprocessed folder, which then is enough alone.
    """
    copy = preprocessed_folder / PATIENTS
    if raw_folder is not None and (raw_folder / PATIENTS).exists():
        patients = read_patients(raw_folder)
        if not copy.exists() or read_patients(preprocessed_folder) != patients:
            write_json(patients, copy)
    return read_patients(preprocessed_folder)


def read_patients(folder: Path) -> dict[str, str]:
    """A dataset folder's ``patients.json``; empty if there is none.

    Raises:
        DatasetError: it is not of the form {"case": "patient"}, or two patients differ only in capitals or blanks.
    """
    file = folder / PATIENTS
    patients = read_json(file) if file.exists() else {}
    if not isinstance(patients, dict):
        raise DatasetError([f'{file} is not of the form {{"case id": "patient", ...}}.'])
    if wrong := [case for case, patient in patients.items() if not _is_patient(patient)]:
        raise DatasetError([f'{file} is not of the form {{"case id": "patient", ...}}: see {some(wrong)}.'])
    spelled: dict[str, str] = {}
    for patient in map(str, patients.values()):
        if (other := spelled.setdefault("".join(patient.split()).casefold(), patient)) != patient:
            raise DatasetError([f"{file}: are {other!r} and {patient!r} one patient? Write both the same way."])
    return {case: str(patient) for case, patient in patients.items()}


def _is_patient(patient: object) -> bool:
    return isinstance(patient, str | int) and not isinstance(patient, bool) and bool(str(patient).strip())


def read_splits(preprocessed_folder: Path) -> list[dict[str, list[str]]]:
    """The folds of ``splits_final.json``; none if there is no file.

    Raises:
        DatasetError: it is not what nnU-Net writes; names the fold.
    """
    file = preprocessed_folder / SPLITS
    splits = read_json(file) if file.exists() else []
    if not isinstance(splits, list):
        problems = ['it is no list of folds, [{"train": ["case id", ...], "val": ["case id", ...]}, ...]']
    elif not splits and file.exists():
        problems = ["it has no fold"]
    else:
        problems = [f"fold {i} {why}" for i, fold in enumerate(splits) if (why := _why_no_fold(fold))]
    if problems:
        raise DatasetError([f"{file}: {some(problems)}. Correct it. {new_splits(preprocessed_folder)}"])
    return splits


def every_fold(preprocessed_folder: Path) -> list[int | str]:
    """The folds to train: those of the split, or else ``all``."""
    return [*range(len(read_splits(preprocessed_folder)))] or ["all"]


def require_folds(dataset: str, folds: Iterable[int | str], count: int) -> None:
    """Raises ValueError: a fold that is none of ``count``, or ``all`` beside others."""
    folds = list(folds)
    if "all" in folds and len(set(folds)) > 1:
        raise ValueError("-f all: it holds no case out and cannot be compared with other folds. Train it alone.")
    if wrong := [str(fold) for fold in folds if isinstance(fold, int) and fold >= count]:
        raise ValueError(f"-f {' '.join(wrong)}: {dataset} has {count} folds, counted from 0.")


def _why_no_fold(fold: object) -> str | None:
    if not isinstance(fold, dict):
        return 'is not of the form {"train": ["case id", ...], "val": ["case id", ...]}'
    for part in ("train", "val"):
        if part not in fold:
            return f'has no "{part}", only {some(list(fold)) or "nothing"}'
        cases = fold[part]
        if not (isinstance(cases, list) and cases and all(isinstance(case, str) for case in cases)):
            return f'has as "{part}" no list of case ids' if cases else f'has no case in "{part}"'
    return None


def new_splits(preprocessed_folder: Path) -> str:
    """The command that makes new splits, and what that costs."""
    found = sorted(preprocessed_folder.glob("*Plans*.json"), key=lambda file: (file.stem != "nnUNetPlans", file.name))
    is_2d = bool(found) and "3d_fullres" not in read_json(found[0]).get("configurations", {})
    plans = f" -p {shlex.quote(found[0].stem)}" if found and found[0].stem != "nnUNetPlans" else ""
    return (
        f"New splits: rm {shlex.quote(str(preprocessed_folder / SPLITS))} && nnUNetv2_crossmatch preprocess "
        f"-d {preprocessed_folder.name} -c {'2d' if is_2d else '3d_fullres'}{plans} (then folds that were trained "
        "before cannot be compared with new ones; train them again)."
    )


def ensure_splits(preprocessed_folder: Path, cases: list[str], patients: dict[str, str]) -> None:
    """Write ``splits_final.json`` with :func:`draw_splits` unless there is one, or no fold to write."""
    splits = [] if (preprocessed_folder / SPLITS).exists() else draw_splits(cases, patients)
    if not splits:
        return
    with locked(preprocessed_folder / f".{SPLITS}.lock"):  # a second process must not replace what the first reads
        if not (preprocessed_folder / SPLITS).exists():
            write_json(splits, preprocessed_folder / SPLITS)


def draw_splits(cases: Iterable[str], patients: dict[str, str]) -> list[dict[str, list[str]]]:
    """min(5, patients) folds, none with one patient only.

    A case without a known patient is its own patient, and then the folds are nnU-Net's own.
    """
    by_patient: dict[str, list[str]] = defaultdict(list)
    for case in sorted(cases):
        by_patient[patients.get(case, case)].append(case)
    if len(by_patient) < 2:
        return []
    splits = generate_crossval_split(sorted(by_patient), seed=12345, n_splits=min(5, len(by_patient)))
    return [
        {part: [case for patient in split[part] for case in by_patient[patient]] for part in ("train", "val")}
        for split in splits
    ]


def validation_patients(preprocessed_folder: Path, fold: int | str, patients: dict[str, str]) -> set[str]:
    """Patients held out by a fold; none for fold ``all``.

    Raises:
        ValueError: there is no such fold (nnU-Net would draw cases at random), or it has a patient on both sides.
    """
    if fold == "all":
        return set()
    file = preprocessed_folder / SPLITS
    if not file.exists():
        raise ValueError(f"One labeled patient cannot be cross-validated: there is no {file}. Train fold all.")
    splits = read_splits(preprocessed_folder)
    if int(fold) >= len(splits):
        raise ValueError(f"{file} has folds 0 to {len(splits) - 1}, not {fold}. Train one of these, or fold all.")
    train, val = ({patients.get(case, case) for case in splits[int(fold)][part]} for part in ("train", "val"))
    if train & val:
        raise ValueError(
            f"{file}: {', '.join(sorted(train & val))} trains and validates in fold {fold}. "
            f"{new_splits(preprocessed_folder)}"
        )
    return val


def without_patients(cases: Iterable[str], patients: dict[str, str], held_out: set[str]) -> list[str]:
    """The cases that are of none of the held-out patients."""
    return [case for case in cases if patients.get(case) not in held_out]
