"""All that can be said of a dataset's scans before training: unreadable, leaking, unlike the labeled ones."""

from dataclasses import dataclass, field
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_crossmatch.preprocessing.content import (
    LABELED,
    UNLABELED,
    Content,
    read_content,
    update_content,
    wrong_channels,
)
from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.preprocessing.geometry import missing_spacings
from nnunetv2_crossmatch.preprocessing.leaks import find_leaks
from nnunetv2_crossmatch.preprocessing.masks import mask_findings
from nnunetv2_crossmatch.preprocessing.outliers import find_outliers
from nnunetv2_crossmatch.preprocessing.splits import SPLITS, known_patients
from nnunetv2_crossmatch.utilities.errors import DatasetError
from nnunetv2_crossmatch.utilities.files import locked, write_json

ACCEPTED = "accepted_leaks.json"  # in the preprocessed dataset folder: leaks that the user lives with


@dataclass
class Findings:
    """What :func:`check_dataset` found, a line each.

    bad: labeled and unlabeled scans that cannot be used.
    leaks: what makes the scores of a training worthless, and is not accepted.
    """

    content: Content = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def raise_errors(self, dataset: str) -> None:
        """Raises DatasetError if there is anything bad, or a leak."""
        accept = [f"To train in spite of the leaks: nnUNetv2_crossmatch check -d {dataset} --accept"]
        if self.bad or self.leaks:
            raise DatasetError([*self.bad, *self.leaks, *(accept if self.leaks else [])])


def check_dataset(dataset: Dataset, num_processes: int, fold: int | str | None = None) -> Findings:
    """Look at all scans; only new and changed ones are read. Without the raw folder what was last seen counts.

    Args:
        fold: the one that is trained; without it all of splits_final.json are checked.

    Raises:
        DatasetError: the list of unlabeled scans itself is wrong, or dataset.json is not the one that was planned with.
    """
    dataset.require_unchanged()
    findings = Findings()
    preprocessed_folder = dataset.preprocessed
    if dataset.raw is None:
        findings.content = read_content(preprocessed_folder)
        problems = wrong_channels(findings.content, {}, dataset.json)
        if not findings.content:
            findings.warnings.append("The raw scans were never checked. Where they are, run nnUNetv2_crossmatch check.")
    else:
        findings.content, problems = update_content(dataset, num_processes)
    for part, of_part in problems.items():
        (findings.bad if part in (LABELED, UNLABELED) else findings.warnings).extend(of_part)
    for part, scans in findings.content.items():
        bad, odd = mask_findings(part, scans, dataset.json)
        (findings.bad if part == LABELED else findings.warnings).extend(bad)
        findings.warnings += odd
    for part, is_bad, line in missing_spacings(findings.content, LABELED):
        (findings.bad if is_bad and part in (LABELED, UNLABELED) else findings.warnings).append(line)

    splits = preprocessed_folder / SPLITS
    folds = dict(enumerate(load_json(str(splits)))) if splits.exists() else {}
    if fold is not None:
        folds = {i: split for i, split in folds.items() if str(i) == str(fold)}
    accepted = _accepted(preprocessed_folder)
    for leak in find_leaks(findings.content, known_patients(dataset.raw, preprocessed_folder), folds):
        stops = leak.is_error and leak.message not in accepted
        (findings.leaks if stops else findings.warnings).append(leak.message)

    labeled, unlabeled = (findings.content.get(part) for part in (LABELED, UNLABELED))
    if labeled and unlabeled:
        channels = dataset.json.get("channel_names") or dataset.json["modality"]
        findings.warnings += find_outliers(labeled, unlabeled, list(channels.values()))
    return findings


def accept_leaks(preprocessed_folder: Path, leaks: list[str]) -> None:
    """From now on these are warnings; others, found later, are errors."""
    with locked(preprocessed_folder / f".{ACCEPTED}.lock"):
        write_json(sorted({*leaks, *_accepted(preprocessed_folder)}), preprocessed_folder / ACCEPTED)


def _accepted(preprocessed_folder: Path) -> set[str]:
    file = preprocessed_folder / ACCEPTED
    return set(load_json(str(file))) if file.exists() else set()
