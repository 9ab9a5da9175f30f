"""All that can be said of a dataset's scans before training: unreadable, leaking, unlike the labeled ones."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_crossmatch.nnunet.images import unknown_reader
from nnunetv2_crossmatch.nnunet.labels import label_mistakes
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
from nnunetv2_crossmatch.preprocessing.leaks import find_leaks, scans_of
from nnunetv2_crossmatch.preprocessing.listing import left_out, nearly_unlabeled, unlabeled_source
from nnunetv2_crossmatch.preprocessing.masks import mask_findings, masks_without_scan
from nnunetv2_crossmatch.preprocessing.outliers import find_outliers
from nnunetv2_crossmatch.preprocessing.reconcile import known_cases, reconcile
from nnunetv2_crossmatch.preprocessing.splits import known_patients, read_splits
from nnunetv2_crossmatch.utilities.dataset_json import channel_names
from nnunetv2_crossmatch.utilities.errors import DatasetError, printable, some
from nnunetv2_crossmatch.utilities.files import locked, read_json, write_json

ACCEPTED = "accepted_leaks.json"  # in the preprocessed dataset folder: leaks that the user lives with


@dataclass
class Findings:
    """What :func:`check_dataset` found, a line each.

    bad: labeled and unlabeled scans that cannot be used, ids that are probably typing errors.
    leaks: what makes the scores of a training worthless, and is not accepted.
    stale: accepted leaks that name scans which are not there any more.
    """

    content: Content = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def raise_errors(self, dataset: int | str) -> None:
        """Raises DatasetError if there is anything bad, or a leak; ``dataset`` is for the command that it names."""
        found = [*self.bad, *self.leaks]
        if not found:
            return
        again = f"nnUNetv2_crossmatch check -d {dataset}"
        accept = [f"To train in spite of the leaks: {again} --accept"] if self.leaks else []
        raise DatasetError([*found, *accept, f"Not ready: {len(found)} to mend, named above. Then: {again}"])


def check_dataset(dataset: Dataset, num_processes: int, fold: int | str | None = None) -> Findings:
    """Look at all scans; only new and changed ones are read. Without the raw folder what was last seen counts.

    Args:
        fold: the one that is trained; without it all of splits_final.json are checked.

    Raises:
        DatasetError: the list of unlabeled scans itself is wrong, or another file that was written by hand;
            dataset.json is not the one that was planned with, or has labels that nnU-Net cannot train with.
    """
    dataset.require_unchanged()
    if mistakes := label_mistakes(dataset.json):
        raise DatasetError(mistakes)
    findings = Findings()
    preprocessed_folder = dataset.preprocessed
    if dataset.raw is None:
        findings.content = read_content(preprocessed_folder)
        problems = wrong_channels(findings.content, {}, dataset.json)
        if not findings.content:
            findings.warnings.append("The raw scans were never checked. Where they are, run nnUNetv2_crossmatch check.")
    else:
        findings.content, problems = update_content(dataset, num_processes)
        # an error where it leaves a training without unlabeled scans
        (findings.warnings if unlabeled_source(dataset.raw) else findings.bad).extend(nearly_unlabeled(dataset.raw))
        findings.warnings += [*left_out(dataset.raw, dataset.json), *unknown_reader(dataset.json)]
    for part, of_part in problems.items():
        (findings.bad if part in (LABELED, UNLABELED) else findings.warnings).extend(of_part)
    for part, scans in findings.content.items():
        bad, odd = mask_findings(part, scans, dataset.json)
        (findings.bad if part == LABELED else findings.warnings).extend(bad)
        findings.warnings += odd
    for part, is_bad, line in missing_spacings(findings.content, LABELED):
        (findings.bad if is_bad and part in (LABELED, UNLABELED) else findings.warnings).append(line)

    patients, parts = known_patients(dataset.raw, preprocessed_folder), known_cases(dataset)
    if dataset.raw is not None:
        findings.warnings += [
            *masks_without_scan(dataset.raw, dataset.json, parts),
            *_fewer_than_said(dataset.json, len(parts[LABELED])),
        ]
    errors, warnings = reconcile(dataset, patients, parts, parts.get(LABELED, ()), fold)
    findings.bad += errors
    findings.warnings[:0] = warnings  # a training's log shows the first ones
    folds = dict(enumerate(read_splits(preprocessed_folder)))
    if fold is not None:
        folds = {i: split for i, split in folds.items() if str(i) == str(fold)}
    accepted = _accepted(preprocessed_folder)
    leaks = find_leaks(findings.content, patients, folds)
    for leak in leaks:
        stops = leak.is_error and leak.message not in accepted
        (findings.leaks if stops else findings.warnings).append(leak.message)
    if findings.content:
        there = {f"{part}/{case}" for part, cases in parts.items() for case in cases}
        unfound = accepted - {leak.message for leak in leaks}
        findings.stale = [message for message in unfound if not there.issuperset(scans_of(message))]
        if gone := sorted({scan for message in findings.stale for scan in scans_of(message)} - there):
            findings.warnings.append(
                f"{preprocessed_folder / ACCEPTED}: scans of accepted leaks that are not here: {len(gone)} "
                f"({some(gone)}). Nothing has to be done."
            )

    labeled, unlabeled = (findings.content.get(part) for part in (LABELED, UNLABELED))
    if labeled and unlabeled:
        findings.warnings += find_outliers(labeled, unlabeled, channel_names(dataset.json))
    findings.warnings = list(map(printable, findings.warnings))
    return findings


def accept_leaks(preprocessed_folder: Path, leaks: list[str], stale: Collection[str] = ()) -> None:
    """From now on these are warnings, but for the stale ones; others, found later, are errors."""
    with locked(preprocessed_folder / f".{ACCEPTED}.lock"):
        accepted = {*leaks, *_accepted(preprocessed_folder)}.difference(stale)
        write_json(sorted(accepted), preprocessed_folder / ACCEPTED)


def _fewer_than_said(dataset_json: dict, labeled: int) -> list[str]:
    """More than numTraining is no loss: scans that were annotated since are in no planned dataset.json."""
    said = dataset_json.get("numTraining")
    if not isinstance(said, int) or said <= labeled:
        return []
    return [f"dataset.json says numTraining {said}, but there are {labeled} labeled scans. Supply those or correct it."]


def _accepted(preprocessed_folder: Path) -> set[str]:
    file = preprocessed_folder / ACCEPTED
    accepted = read_json(file) if file.exists() else []
    if not isinstance(accepted, list) or not all(isinstance(message, str) for message in accepted):
        raise DatasetError([f"{file} is no list of messages. Remove it, then nnUNetv2_crossmatch check --accept."])
    return set(accepted)
