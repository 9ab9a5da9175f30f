"""What several commands do."""

import sys
from pathlib import Path


def report(raw: Path, preprocessed: Path, dataset_json: dict, num_processes: int, accept: bool = False) -> None:
    """Print what the check finds; an error ends the program unless it is accepted."""
    from nnunetv2_crossmatch.preprocessing.check import accept_leaks, check_dataset

    findings = check_dataset(raw, preprocessed, dataset_json, num_processes)
    if accept:
        accept_leaks(preprocessed, findings.leaks)
        findings = check_dataset(raw, preprocessed, dataset_json, num_processes)
    for warning in findings.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{raw}: " + ", ".join(f"{len(cases)} scans in {part}" for part, cases in findings.content.items()))
    findings.raise_errors(raw.name)


def dataset(name_or_id: str) -> tuple[Path, Path, dict]:
    """Raw folder, preprocessed folder and dataset.json."""
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    name = maybe_convert_to_dataset_name(name_or_id)
    return (
        Path(nnUNet_raw) / name,
        Path(nnUNet_preprocessed) / name,
        load_json(str(Path(nnUNet_raw) / name / "dataset.json")),
    )


def as_fold(value: str) -> int | str:
    """A fold on the command line."""
    return value if value == "all" else int(value)
