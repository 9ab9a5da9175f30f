"""The same image or the same patient where it must not be twice."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from nnunetv2_crossmatch.preprocessing.content import LABELED, UNLABELED, Content

_TRAINING = {LABELED, UNLABELED}


@dataclass(frozen=True)
class Finding:
    """Something a user should know. An error stops the training unless it is accepted."""

    is_error: bool
    message: str


def find_leaks(content: Content, patients: dict[str, str], splits: list[dict[str, list[str]]]) -> list[Finding]:
    """Scans and patients in more than one part, and the same image twice within one.

    Args:
        content: sha256 of every scan.
        patients: of each case, as far as known (``patients.json``).
        splits: nnU-Net's folds, [{"train": cases, "val": cases}, ...].

    Returns:
        Errors: an image both in training and held out, both labelled and unlabelled, or on both sides of a fold;
        a patient both in training and held out. Warnings: an image twice within one part or in two held-out
        parts; a patient with labelled and unlabelled scans (a fold that validates the former leaves out the latter).
    """
    return [*_images(content, splits), *_patients(content, patients)]


def _images(content: Content, splits: list[dict[str, list[str]]]) -> Iterator[Finding]:
    same: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for part, cases in content.items():
        for case, entry in cases.items():
            same[entry["sha256"]].append((part, case))
    for scans in same.values():
        if len(scans) == 1:
            continue
        named = " = ".join(f"{part}/{case}" for part, case in scans)
        parts = {part for part, _ in scans}
        if parts & _TRAINING and len(parts) > 1:
            yield Finding(True, f"The same image: {named}. Remove it from all places but one.")
            continue
        labeled = {case for part, case in scans if part == LABELED}
        folds = [str(i) for i, s in enumerate(splits) if labeled & set(s["train"]) and labeled & set(s["val"])]
        if folds:
            yield Finding(
                True,
                f"The same image trains and validates in fold {', '.join(folds)}: {named}. Give both cases the same "
                "patient in patients.json and remove splits_final.json.",
            )
        else:
            yield Finding(False, f"The same image: {named}.")


def _patients(content: Content, patients: dict[str, str]) -> Iterator[Finding]:
    parts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for part, cases in content.items():
        for case in cases:
            if case in patients:
                parts[patients[case]][part].append(case)
    shared = []
    for patient, scans in parts.items():
        if scans.keys() & _TRAINING and scans.keys() - _TRAINING:
            named = ", ".join(f"{part}/{case}" for part, cases in scans.items() for case in cases)
            yield Finding(True, f"Patient {patient} is in training and held out: {named}. Remove one or the other.")
        elif scans.keys() >= _TRAINING:
            shared.append(patient)
    if shared:
        yield Finding(False, f"Patients with labelled and unlabelled scans: {', '.join(sorted(shared))}.")
