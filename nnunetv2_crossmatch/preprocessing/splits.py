"""Cross-validation splits that keep a patient's scans together."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_crossmatch.utilities.errors import DatasetError
from nnunetv2_crossmatch.utilities.files import locked, write_json

PATIENTS = "patients.json"  # in the raw dataset folder: {case id: patient}
SPLITS = "splits_final.json"


def known_patients(raw_folder: Path | None, preprocessed_folder: Path) -> dict[str, str]:
    """Patient of each case as far as known; empty without a patients.json.

    The raw folder's file is copied to the preprocessed folder, which then is enough alone.
    """
    copy = preprocessed_folder / PATIENTS
    if raw_folder is not None and (raw_folder / PATIENTS).exists():
        patients = read_patients(raw_folder)
        if not copy.exists() or load_json(str(copy)) != patients:
            write_json(patients, copy)
    return load_json(str(copy)) if copy.exists() else {}


def read_patients(raw_folder: Path) -> dict[str, str]:
    """The raw dataset folder's ``patients.json``; empty if there is none.

    Raises:
        DatasetError: it is not of the form {"case": "patient"}.
    """
    file = raw_folder / PATIENTS
    patients = load_json(str(file)) if file.exists() else {}
    if not isinstance(patients, dict) or not all(isinstance(patient, str | int) for patient in patients.values()):
        raise DatasetError([f'{file} is not of the form {{"case id": "patient", ...}}.'])
    return {case: str(patient) for case, patient in patients.items()}


def ensure_splits(preprocessed_folder: Path, cases: list[str], patients: dict[str, str]) -> None:
    """Write ``splits_final.json`` unless there is one: min(5, patients) folds, none with one patient only.

    A case without a known patient is its own patient, and then the folds are nnU-Net's own.
    """
    by_patient: dict[str, list[str]] = defaultdict(list)
    for case in sorted(cases):
        by_patient[patients.get(case, case)].append(case)
    if (preprocessed_folder / SPLITS).exists() or len(by_patient) < 2:
        return
    splits = generate_crossval_split(sorted(by_patient), seed=12345, n_splits=min(5, len(by_patient)))
    expanded = [
        {part: [case for patient in split[part] for case in by_patient[patient]] for part in ("train", "val")}
        for split in splits
    ]
    with locked(preprocessed_folder / f".{SPLITS}.lock"):  # a second process must not replace what the first reads
        if not (preprocessed_folder / SPLITS).exists():
            write_json(expanded, preprocessed_folder / SPLITS)


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
    splits = load_json(str(file))
    if int(fold) >= len(splits):
        raise ValueError(f"{file} has folds 0 to {len(splits) - 1}, not {fold}. Train one of these, or fold all.")
    train, val = ({patients.get(case, case) for case in splits[int(fold)][part]} for part in ("train", "val"))
    if train & val:
        raise ValueError(
            f"{file}: {', '.join(sorted(train & val))} trains and validates in fold {fold}. Remove the file; "
            "the next command writes a split by patient."
        )
    return val


def without_patients(cases: Iterable[str], patients: dict[str, str], held_out: set[str]) -> list[str]:
    """The cases that are of none of the held-out patients."""
    return [case for case in cases if patients.get(case) not in held_out]
