"""All that can be said of a dataset's scans before training: unreadable, leaking, unlike the labelled ones."""

from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_crossmatch.preprocessing.content import LABELED, UNLABELED, Content, read_content, update_content
from nnunetv2_crossmatch.preprocessing.files import write_json
from nnunetv2_crossmatch.preprocessing.leaks import Finding, find_leaks
from nnunetv2_crossmatch.preprocessing.outliers import find_outliers
from nnunetv2_crossmatch.preprocessing.splits import SPLITS, known_patients

ACCEPTED = "accepted_leaks.json"  # in the preprocessed dataset folder: messages of errors to live with


def check_dataset(
    raw_folder: Path | None, preprocessed_folder: Path, dataset_json: dict, num_processes: int
) -> tuple[Content, list[Finding]]:
    """Findings about all scans, errors first. Only new and changed scans are read.

    Args:
        raw_folder: None where only the preprocessed folder is at hand; then what was last seen counts.

    Raises:
        DatasetError: the list of unlabelled scans itself is wrong.
    """
    findings = []
    if raw_folder is None:
        content = read_content(preprocessed_folder)
    else:
        content, problems = update_content(raw_folder, preprocessed_folder, dataset_json, num_processes)
        findings += [
            Finding(part in (LABELED, UNLABELED), problem) for part, of_part in problems.items() for problem in of_part
        ]
    splits = preprocessed_folder / SPLITS
    accepted = _accepted(preprocessed_folder)
    findings += [
        Finding(leak.is_error and leak.message not in accepted, leak.message)
        for leak in find_leaks(
            content,
            known_patients(raw_folder, preprocessed_folder),
            load_json(str(splits)) if splits.exists() else [],
        )
    ]
    if content.get(LABELED) and content.get(UNLABELED):
        channels = dataset_json.get("channel_names") or dataset_json["modality"]
        findings += [
            Finding(False, line)
            for line in find_outliers(content[LABELED], content[UNLABELED], list(channels.values()))
        ]
    return content, sorted(findings, key=lambda finding: not finding.is_error)


def accept_leaks(preprocessed_folder: Path, findings: list[Finding]) -> None:
    """From now on these errors are warnings; others, found later, are errors."""
    messages = {finding.message for finding in findings if finding.is_error}
    write_json(sorted(messages | _accepted(preprocessed_folder)), preprocessed_folder / ACCEPTED)


def _accepted(preprocessed_folder: Path) -> set[str]:
    file = preprocessed_folder / ACCEPTED
    return set(load_json(str(file))) if file.exists() else set()
