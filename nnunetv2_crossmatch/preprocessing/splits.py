"""Cross-validation splits that keep a patient's scans together."""

from collections import defaultdict
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.utilities.crossval_split import generate_crossval_split

PATIENTS = "patients.json"  # in the raw dataset folder: {case id: patient}


def patient_of(raw_folder: Path | None) -> dict[str, str]:
    """Patient of each case as far as known; empty without a patients.json."""
    file = raw_folder / PATIENTS if raw_folder is not None else None
    return load_json(str(file)) if file is not None and file.exists() else {}


def ensure_splits(preprocessed_folder: Path, cases: list[str], patients: dict[str, str]) -> None:
    """Write ``splits_final.json`` unless there is one: min(5, patients) folds, none with one patient only.

    A case without a known patient is its own patient, and then the folds are nnU-Net's own.
    """
    file = preprocessed_folder / "splits_final.json"
    by_patient: dict[str, list[str]] = defaultdict(list)
    for case in sorted(cases):
        by_patient[patients.get(case, case)].append(case)
    if file.exists() or len(by_patient) < 2:
        return
    splits = generate_crossval_split(sorted(by_patient), seed=12345, n_splits=min(5, len(by_patient)))
    expanded = [
        {part: [case for patient in split[part] for case in by_patient[patient]] for part in ("train", "val")}
        for split in splits
    ]
    preprocessed_folder.mkdir(parents=True, exist_ok=True)
    save_json(expanded, str(file))
