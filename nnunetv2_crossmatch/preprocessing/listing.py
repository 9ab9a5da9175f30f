"""Which scans are unlabelled: ``unlabeled.json``, or without it the folder ``imagesUn``."""

import json
import os
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json


class DatasetError(ValueError):
    """What is wrong with a dataset, all of it at once, each line naming the file and the fix."""

    def __init__(self, problems: Iterable[str]):
        super().__init__("\n".join(("", *problems)))


def list_unlabeled(
    raw_folder: Path, dataset_json: dict, was_seen: Callable[[str], bool] = lambda case: False
) -> dict[str, list[Path]] | None:
    """Image files of every unlabelled case of ``nnUNet_raw/DatasetXXX_NAME``, one file per channel.

    Args:
        was_seen: of which cases the files need not be there any more, as after copying the dataset to another machine.

    Returns:
        {case id: files}, sorted by id; None where the dataset has neither a list nor the folder.

    Raises:
        DatasetError: an empty or malformed list, missing files, an id or a file that is also a
            training or held-out case or another unlabelled one.
    """
    list_file, folder = raw_folder / "unlabeled.json", raw_folder / "imagesUn"
    if list_file.exists():
        cases = _from_json(list_file)
    elif folder.exists():
        cases = group_channels(folder, dataset_json["file_ending"])
    else:
        return None
    source = list_file if list_file.exists() else folder
    if not cases:
        raise DatasetError([f"{source} names no scan. Put the unlabelled scans there, or train nnUNetTrainer."])

    others = labeled_and_held_out(raw_folder, dataset_json)
    problems = [
        f"{source}: {case} is also in {raw_folder / part}. Rename or remove one of the two."
        for part, scans in others.items()
        for case in sorted(cases.keys() & scans)
    ]
    problems += _reused_files(source, cases, others)
    problems += [
        f"{list_file}: {case} names {file}, which does not exist. Correct the path or remove the case."
        for case, files in cases.items()
        for file in files
        if not file.is_file() and not (was_seen(case) and are_absent(files))
    ]
    if problems:
        raise DatasetError(problems)
    return dict(sorted(cases.items()))


def has_training_scans(raw_folder: Path) -> bool:
    """Whether there is a raw dataset, not merely its test scans."""
    return (raw_folder / "dataset.json").exists() and any(
        (raw_folder / name).exists() for name in ("imagesTr", "imagesUn", "unlabeled.json")
    )


def are_absent(files: list[Path]) -> bool:
    """Whether not one of a scan's files is there."""
    return not any(file.exists() for file in files)


def labeled_scans(raw_folder: Path, dataset_json: dict) -> dict[str, list[Path]]:
    """Image files of the training cases, from dataset.json's ``dataset`` or else from ``imagesTr``."""
    if "dataset" in dataset_json:
        return {case: _resolve(raw_folder, entry["images"]) for case, entry in sorted(dataset_json["dataset"].items())}
    if not (raw_folder / "imagesTr").is_dir():
        raise DatasetError([f"{raw_folder / 'imagesTr'} is missing. Supply it, or hide the raw dataset folder."])
    return group_channels(raw_folder / "imagesTr", dataset_json["file_ending"])


def labeled_and_held_out(raw_folder: Path, dataset_json: dict) -> dict[str, dict[str, list[Path]]]:
    """{"imagesTr": labelled scans, "imagesTs": test scans, ...}; every other folder ``images*`` is held out too."""
    ending = dataset_json["file_ending"]
    parts = {"imagesTr": labeled_scans(raw_folder, dataset_json)}
    for folder in sorted(raw_folder.glob("images*")):
        if folder.is_dir() and folder.name not in ("imagesTr", "imagesUn"):
            scans = parts.setdefault(folder.name, {})
            for file in sorted(folder.glob("[!.]*" + ending)):  # leniently: nnU-Net does not mind what else lies there
                scans.setdefault(re.sub(r"_\d{4}$", "", file.name.removesuffix(ending)), []).append(file)
    return parts


def group_channels(folder: Path, file_ending: str) -> dict[str, list[Path]]:
    """Files named CASE_0000.nii.gz, CASE_0001.nii.gz, ... by case.

    Raises:
        DatasetError: files with the dataset's ending but without a channel number; missing channels.
    """
    pattern = re.compile(rf"(?P<case>.+)_(?P<channel>\d{{4}}){re.escape(file_ending)}")
    cases: dict[str, list[Path]] = {}
    problems = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name):  # whole paths compare slowly
        if file.name.startswith(".") or not file.name.endswith(file_ending):
            continue
        if match := pattern.fullmatch(file.name):
            cases.setdefault(match["case"], []).append(file)
            if int(match["channel"]) != len(cases[match["case"]]) - 1:
                problems.append(f"{file}: a channel before it is missing. Supply it or remove the case.")
        else:
            stem = file.name.removesuffix(file_ending)
            problems.append(f"{file} has no channel number. Rename it to {stem}_0000{file_ending}.")
    if problems:
        raise DatasetError(problems)
    return cases


def _reused_files(source: Path, cases: dict[str, list[Path]], others: dict[str, dict[str, list[Path]]]) -> list[str]:
    """The same file under two unlabelled ids, or listed although it is a labelled or held-out scan."""
    real_folder = cache(Path.resolve)  # resolving every path anew asks for every folder above it

    def real(file: Path) -> Path:
        return file.resolve() if file.is_symlink() else real_folder(file.parent) / file.name

    owner = {real(file): str(file) for scans in others.values() for files in scans.values() for file in files}
    problems = []
    for case, files in cases.items():
        for file in map(real, files):
            if file in owner:
                problems.append(f"{source}: {case} is the same file as {owner[file]}. Remove the case.")
            owner[file] = f"that of {case}"
    return problems


def _resolve(folder: Path, images: list[str]) -> list[Path]:
    """As nnU-Net in "dataset": relative to the dataset folder or absolute, environment variables allowed."""
    return [folder / os.path.expandvars(image) for image in images]


def _from_json(list_file: Path) -> dict[str, list[Path]]:
    try:
        entries = load_json(str(list_file))
    except json.JSONDecodeError as e:
        raise DatasetError([f"{list_file} is not valid JSON: {e}"]) from None
    cases, problems = {}, []
    for case, entry in entries.items() if isinstance(entries, dict) else [("", None)]:
        images = entry.get("images") if isinstance(entry, dict) else None
        if not (isinstance(images, list) and images and all(isinstance(i, str) for i in images)):
            problems.append(
                f'{list_file}: entry {case!r} is not of the form {{"case id": {{"images": ["path", ...]}}}}.'
            )
        else:
            cases[case] = _resolve(list_file.parent, images)
    if problems:
        raise DatasetError(problems)
    return cases
