"""The same image or the same patient where it must not be twice."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nnunetv2_crossmatch.preprocessing.content import LABELED, UNLABELED, Content

_TRAINING = {LABELED, UNLABELED}
_NEW_SPLIT = "and remove splits_final.json; the next command writes a split by patient."


@dataclass(frozen=True)
class Leak:
    """An error stops the training unless the user accepts it."""

    is_error: bool
    message: str


def find_leaks(content: Content, patients: dict[str, str], folds: Mapping[int, dict[str, list[str]]]) -> list[Leak]:
    """Images and patients in more than one part, and the same image twice within one.

    Args:
        content: :func:`~nnunetv2_crossmatch.preprocessing.scan.describe` of every scan.
        patients: of each case, as far as known (``patients.json``).
        folds: nnU-Net's splits by number, {"train": cases, "val": cases}.

    Returns:
        Errors: an image both in training and held out, both labeled and unlabeled, or on both sides of a fold;
        a patient both in training and held out, or on both sides of a fold. Warnings: an image twice within one
        part; an image or a patient in two held-out parts; a patient with labeled and unlabeled scans (a fold
        that validates the former leaves out the latter).
    """
    return [*_images(content, folds), *_patients(content, patients, folds)]


_SCAN = re.compile(
    r"((?:unlabeled|images[^/,=]*)/.+?)(?= = |, (?:unlabeled|images[^/,=]*)/|\. (?:Remove|Give|Correct) |\.$)"
)


def scans_of(message: str) -> list[str]:
    """The scans that the message of a leak names, each as PART/CASE."""
    return _SCAN.findall(message.partition(": ")[2])


def _images(content: Content, folds: Mapping[int, dict[str, list[str]]]) -> Iterator[Leak]:
    same: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for part, cases in content.items():
        for case, entry in cases.items():
            same[entry["voxels"]].append((part, case))
    for scans in same.values():
        if len(scans) == 1:
            continue
        named = " = ".join(f"{part}/{case}" for part, case in scans)
        parts = {part for part, _ in scans}
        if parts & _TRAINING and len(parts) > 1:
            yield Leak(True, f"The same image: {named}. Remove it from all places but one.")
        elif parted := _parting(folds, {case for part, case in scans if part == LABELED}):
            yield Leak(
                True,
                f"The same image trains and validates in fold {parted}: {named}. Give both cases the same patient in "
                f"patients.json {_NEW_SPLIT}",
            )
        else:
            yield Leak(False, f"The same image: {named}.")


def _patients(content: Content, patients: dict[str, str], folds: Mapping[int, dict[str, list[str]]]) -> Iterator[Leak]:
    by_patient: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for part, cases in content.items():
        for case in cases:
            if case in patients:
                by_patient[patients[case]][part].append(case)
    for patient, scans in by_patient.items():
        named = ", ".join(f"{part}/{case}" for part, cases in scans.items() for case in cases)
        if parted := _parting(folds, set(scans.get(LABELED, ()))):
            yield Leak(
                True, f"Patient {patient} trains and validates in fold {parted}: {named}. Correct it {_NEW_SPLIT}"
            )
        if len(scans) == 1:
            continue
        if scans.keys() & _TRAINING and scans.keys() - _TRAINING:
            yield Leak(True, f"Patient {patient} is in training and held out: {named}. Remove one or the other.")
        else:
            yield Leak(False, f"Patient {patient} is in two parts: {named}.")


def _parting(folds: Mapping[int, dict[str, list[str]]], cases: set[str]) -> str:
    """Numbers of the folds that have some of the cases on either side."""
    return ", ".join(str(i) for i, fold in folds.items() if cases & set(fold["train"]) and cases & set(fold["val"]))
