"""Which scans are unlabeled: ``unlabeled.json``, or without it the folder ``imagesUn``."""

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from nnunetv2_crossmatch.utilities.errors import DatasetError


def list_unlabeled(
    raw_folder: Path, dataset_json: dict, was_seen: Callable[[str], bool] = lambda case: False
) -> dict[str, list[Path]] | None:
    """Image files of every unlabeled case of ``nnUNet_raw/DatasetXXX_NAME``, one file per channel.

    Args:
        was_seen: of which cases the files need not be there any more, as after copying the dataset to another machine.

    Returns:
        {case id: files}, sorted by id; None where the dataset has neither a list nor the folder.

    Raises:
        DatasetError: an empty or malformed list, missing files, an id that cannot be a file name, an id or a
            file that is also a training or held-out case or another unlabeled one.
    """
    cases, problems = survey_unlabeled(raw_folder, dataset_json, was_seen)
    if problems:
        raise DatasetError(problems)
    return cases


def survey_unlabeled(
    raw_folder: Path, dataset_json: dict, was_seen: Callable[[str], bool]
) -> tuple[dict[str, list[Path]] | None, list[str]]:
    """:func:`list_unlabeled` of the cases that can be used, perhaps none, and what is wrong with the others.

    Raises:
        DatasetError: there is no list to read, or it is empty.
    """
    list_file, folder = raw_folder / "unlabeled.json", raw_folder / "imagesUn"
    if os.path.lexists(list_file):
        source, (cases, problems) = list_file, _from_json(list_file)
    elif folder.is_dir():
        source, (cases, problems) = folder, _from_folder(folder, dataset_json["file_ending"])
    elif os.path.lexists(folder):
        raise DatasetError([f"{folder} {why_unusable(folder) or 'is not a folder'}. Correct or remove it."])
    else:
        return None, []
    if not cases and not problems:
        raise DatasetError([f"{source} names no scan. Put the unlabeled scans there, or train nnUNetTrainer."])

    others = labeled_and_held_out(raw_folder, dataset_json)
    bad_ids = {case: why for case in cases if (why := _why_no_file_name(case))}
    problems += [
        (case, f"{source}: the id {case!r} cannot be a file name ({why}). Rename the case.")
        for case, why in bad_ids.items()
    ]
    problems += _colliding_ids(source, cases.keys() - bad_ids)
    problems += [
        (case, f"{source}: {case} is also in {raw_folder / part}. Rename or remove one of the two.")
        for part, scans in others.items()
        for case in sorted(cases.keys() & scans)
    ]
    problems += [
        (case, f"{source}: {case!r} names {str(file)!r}, which {why}. Correct the path or remove the case.")
        for case, files in cases.items()
        for file in files
        if (why := why_unusable(file)) and not (was_seen(case) and are_absent(files))
    ]
    problems += _reused_files(source, _without(cases, problems), others)
    return dict(sorted(_without(cases, problems).items())), [message for _, message in problems]


def why_unusable(file: Path) -> str | None:
    """Why there is no file to read; devices and pipes are none, because reading them need not end."""
    if os.path.isfile(file):
        return None
    if os.path.exists(file):
        return "is not a file"
    return "is a link to nothing" if os.path.islink(file) else "does not exist"


def has_training_scans(raw_folder: Path) -> bool:
    """Whether there is a raw dataset, not merely its test scans."""
    return (raw_folder / "dataset.json").exists() and any(
        (raw_folder / name).exists() for name in ("imagesTr", "imagesUn", "unlabeled.json")
    )


def are_absent(files: list[Path]) -> bool:
    """Whether not one of a scan's files is there."""
    return not any(os.path.exists(file) for file in files)  # Path.exists raises if the name is too long


def labeled_scans(raw_folder: Path, dataset_json: dict) -> dict[str, list[Path]]:
    """Image files of the training cases, from dataset.json's ``dataset`` or else from ``imagesTr``."""
    if "dataset" in dataset_json:
        return {case: _resolve(raw_folder, entry["images"]) for case, entry in sorted(dataset_json["dataset"].items())}
    if not (raw_folder / "imagesTr").is_dir():
        raise DatasetError([f"{raw_folder / 'imagesTr'} is missing. Supply it, or hide the raw dataset folder."])
    return group_channels(raw_folder / "imagesTr", dataset_json["file_ending"])


def labeled_and_held_out(raw_folder: Path, dataset_json: dict) -> dict[str, dict[str, list[Path]]]:
    """{"imagesTr": labeled scans, "imagesTs": test scans, ...}; every other folder ``images*`` is held out too."""
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
    cases, problems = _from_folder(folder, file_ending)
    if problems:
        raise DatasetError(message for _, message in problems)
    return cases


_Problems = list[tuple[str | None, str]]  # the case that cannot be used, where it is one, and the message


def _without(cases: dict[str, list[Path]], problems: _Problems) -> dict[str, list[Path]]:
    bad = {case for case, _ in problems}
    return {case: files for case, files in cases.items() if case not in bad}


def _from_folder(folder: Path, file_ending: str) -> tuple[dict[str, list[Path]], _Problems]:
    pattern = re.compile(rf"(?P<case>.+)_(?P<channel>\d{{4}}){re.escape(file_ending)}", re.DOTALL)
    cases: dict[str, list[Path]] = {}
    problems: _Problems = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name):  # whole paths compare slowly
        if file.name.startswith(".") or not file.name.endswith(file_ending):
            continue
        if match := pattern.fullmatch(file.name):
            cases.setdefault(match["case"], []).append(file)
            if int(match["channel"]) != len(cases[match["case"]]) - 1:
                message = f"{file}: a channel before it is missing. Supply it or remove the case."
                problems.append((match["case"], message))
        else:
            stem = file.name.removesuffix(file_ending)
            problems.append((None, f"{file} has no channel number. Rename it to {stem}_0000{file_ending}."))
    return cases, problems


_FORBIDDEN = {"Cc": "a control character", "Zl": "a line break", "Zp": "a line break", "Cs": "no valid Unicode"}
_LONGEST_ID = 240  # bytes; most file systems allow 255 with all suffixes


def _why_no_file_name(case: str) -> str | None:
    if not case or case.startswith("."):
        return "it is empty" if not case else "it begins with a dot"
    if "/" in case or "\\" in case:
        return "it has a path separator"
    if found := _FORBIDDEN.keys() & set(map(unicodedata.category, case)):
        return f"it has {_FORBIDDEN[min(found)]}"
    return "it is too long" if len(case.encode()) > _LONGEST_ID else None


def _colliding_ids(source: Path, cases: Iterable[str]) -> _Problems:
    """Two ids whose preprocessed files have the same name on a file system that ignores upper and lower case."""
    owner: dict[str, str] = {}
    problems: _Problems = []
    for case in sorted(cases):
        name = unicodedata.normalize("NFC", case).casefold()
        for written in (name, name + "_seg"):  # as nnU-Net calls the two arrays of a case
            other = owner.setdefault(written, case)
            if other != case:
                message = f"{source}: the files of {other!r} and {case!r} would have the same name. Rename one of them."
                problems += [(case, message), (other, message)]
    return problems


def _reused_files(source: Path, cases: dict[str, list[Path]], others: dict[str, dict[str, list[Path]]]) -> _Problems:
    """The same file under two unlabeled ids, or listed although it is a labeled or held-out scan."""
    real_folder = cache(os.path.realpath)  # resolving every path by itself asks for every folder above it

    def real(file: Path) -> str:
        return os.path.realpath(file) if file.is_symlink() else os.path.join(real_folder(file.parent), file.name)

    owner = {real(file): str(file) for scans in others.values() for files in scans.values() for file in files}
    problems: _Problems = []
    for case, files in cases.items():
        for file in map(real, files):
            if file in owner:
                problems.append((case, f"{source}: {case} is the same file as {owner[file]}. Remove the case."))
            owner[file] = f"that of {case}"
    return problems


def _resolve(folder: Path, images: list[str]) -> list[Path]:
    """As nnU-Net in "dataset": relative to the dataset folder or absolute, environment variables allowed."""
    return [folder / os.path.expandvars(image) for image in images]


def _from_json(list_file: Path) -> tuple[dict[str, list[Path]], _Problems]:
    problems: _Problems = []

    def once(pairs: list[tuple[str, object]]) -> dict:
        repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        if "images" in repeated:
            return {}  # an entry that cannot be used
        problems.extend((key, f"{list_file}: {key!r} is there more than once. Remove all but one.") for key in repeated)
        return dict(pairs)

    if why := why_unusable(list_file):
        raise DatasetError([f"{list_file} {why}. Correct or remove it."])
    try:
        entries = json.loads(list_file.read_bytes(), object_pairs_hook=once)  # bytes: any UTF, with or without BOM
    except (ValueError, RecursionError, OSError) as e:
        raise DatasetError([f"{list_file} is not valid JSON: {e}"]) from None
    cases = {}
    for case, entry in entries.items() if isinstance(entries, dict) else [("", None)]:
        images = entry.get("images") if isinstance(entry, dict) else None
        if not (isinstance(images, list) and images and all(isinstance(i, str) for i in images)):
            message = f'{list_file}: entry {case!r} is not of the form {{"case id": {{"images": ["path", ...]}}}}.'
            problems.append((case, message))
        else:
            cases[case] = _resolve(list_file.parent, images)
    return cases, problems
