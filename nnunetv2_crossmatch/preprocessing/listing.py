"""Which scans are unlabeled: ``unlabeled.json``, or without it the folder ``imagesUn``."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from statistics import mode
from typing import TypeGuard

from nnunetv2_crossmatch.preprocessing.image_folder import (
    UNLABELED_FOLDER,
    UNLABELED_LIST,
    Problems,
    by_case,
    from_folder,
    group_channels,
    left_out_of,
    numbers_of,
)
from nnunetv2_crossmatch.utilities.errors import DatasetError, some
from nnunetv2_crossmatch.utilities.files import NO_UNICODE, is_unicode, read_json
from nnunetv2_crossmatch.utilities.folders import is_litter, read_folder


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
    source = unlabeled_source(raw_folder)
    if source is None:
        return None, []
    if source.name == UNLABELED_LIST:
        cases, problems = _from_json(source)
    elif source.is_dir():
        cases, problems = from_folder(source, dataset_json)
    else:
        raise DatasetError([f"{source} {why_unusable(source) or 'is not a folder'}. Correct or remove it."])
    if not cases and not problems:
        none = f"{source} names no scan. Put the unlabeled scans there, or train nnUNetTrainer."
        raise DatasetError([none, *nearly_unlabeled(raw_folder), *left_out(raw_folder, dataset_json)])

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
    return dict(sorted(_without(cases, problems).items())), list(dict.fromkeys(message for _, message in problems))


_SHORT = ("imagesu", "imageun", "imagesul", "imagesunl", "imagesunlab")
_NEARLY = ("imagesunlabeled", "imagesunlabelled", "unlabeled", "unlabelled", "unlabeledimages", "unlabelledimages")


def unlabeled_source(raw_folder: Path) -> Path | None:
    """What says which scans are unlabeled: ``unlabeled.json``, else ``imagesUn``; None where neither is there."""
    sources = (raw_folder / name for name in (UNLABELED_LIST, UNLABELED_FOLDER))
    return next((source for source in sources if os.path.lexists(source)), None)


def unlabeled_ids(raw_folder: Path, dataset_json: dict) -> set[str]:
    """Ids of all unlabeled cases, of those that cannot be used too."""
    source = unlabeled_source(raw_folder)
    if source is None or (source.name == UNLABELED_FOLDER and not source.is_dir()):
        return set()
    is_list = source.name == UNLABELED_LIST
    cases, problems = _from_json(source) if is_list else from_folder(source, dataset_json)
    return {*cases, *(case for case, _ in problems if case is not None)}


def left_out(raw_folder: Path, dataset_json: dict) -> list[str]:
    """:func:`left_out_of` every folder of scans, and what is called nearly like one."""
    lines = []
    for folder in sorted(raw_folder.glob("[iI][mM][aA][gG][eE][sS]*")):
        spelled = {name.casefold(): name for name in ("imagesTr", "imagesTs", UNLABELED_FOLDER)}
        right = spelled.get(folder.name.casefold(), "images" + folder.name[len("images") :])
        if right != folder.name:
            lines.append(f"{folder} is not {right}: upper and lower case count. Rename it.")
        elif not folder.is_dir():
            lines.append(f"{folder} is not a folder and not used.")
        elif folder.name == UNLABELED_FOLDER and os.path.lexists(raw_folder / UNLABELED_LIST):
            lines += _not_listed(raw_folder)
        elif folder.name != "imagesTr" or "dataset" not in dataset_json:
            lines += left_out_of(folder, dataset_json)
    return lines


def nearly_unlabeled(raw_folder: Path) -> list[str]:
    """Folders that were probably to be ``imagesUn``: ``imagesUnlabeled``, ``unlabeled``, ``imagesU``."""
    spelled = {folder: re.sub(r"[^a-z]", "", folder.name.casefold()) for folder in sorted(raw_folder.glob("[!.]*"))}
    return [
        f"{folder}: its scans are not used as unlabeled ones. Did you mean {UNLABELED_FOLDER}? Rename the folder."
        for folder, letters in spelled.items()
        if (letters in _SHORT or ("un" in letters and get_close_matches(letters, _NEARLY, 1, cutoff=0.85)))
        and folder.is_dir()
    ]


def _not_listed(raw_folder: Path) -> list[str]:
    """unlabeled.json wins over imagesUn; links and relative paths may lead from the one to the other."""
    list_file, folder = raw_folder / UNLABELED_LIST, raw_folder / UNLABELED_FOLDER
    real = _real_path()
    try:
        listed = {real(file) for files in _from_json(list_file)[0].values() for file in files}
    except DatasetError:
        return []  # said where the list is read
    there = [file for file in folder.rglob("[!.]*") if not (file.is_dir() or file.suffix == ".json" or is_litter(file))]
    names = sorted(str(file.relative_to(folder)) for file in there if real(file) not in listed)
    if not names:
        return []
    return [
        f"{folder}: {len(names)} files not used ({some(names)}), because {list_file} is there and does not list them. "
        "List them, or remove one of the two."
    ]


def why_unusable(file: Path) -> str | None:
    """Why there is no file to read; devices and pipes are none, because reading them need not end."""
    if not is_unicode(file):
        return NO_UNICODE
    if os.path.isfile(file):
        return None
    if os.path.exists(file):
        return "is not a file"
    return "is a link to nothing" if os.path.islink(file) else "does not exist"


def has_training_scans(raw_folder: Path) -> bool:
    """Whether there is a raw dataset, not merely its test scans."""
    return (raw_folder / "dataset.json").exists() and any(
        (raw_folder / name).exists() for name in ("imagesTr", UNLABELED_FOLDER, UNLABELED_LIST)
    )


def are_absent(files: list[Path]) -> bool:
    """Whether not one of a scan's files is there."""
    return not any(os.path.exists(file) for file in files)  # Path.exists raises if the name is too long


def labeled_scans(raw_folder: Path, dataset_json: dict) -> dict[str, list[Path]]:
    """Image files of the training cases, from dataset.json's ``dataset`` or else from ``imagesTr``.

    Raises:
        DatasetError: neither is there, or not as nnU-Net wants it.
    """
    if "dataset" in dataset_json:
        named, list_file = dataset_json["dataset"], raw_folder / "dataset.json"
        entries = named.items() if isinstance(named, dict) else [("", None)]
        if wrong := [case for case, entry in entries if not _has_images(entry)]:
            raise DatasetError([f"{list_file}: {_WANTED.format(what=f'dataset, {some(wrong)}')}"])
        return {case: _resolve(raw_folder, entry["images"]) for case, entry in sorted(entries)}
    if not (raw_folder / "imagesTr").is_dir():
        raise DatasetError([f"{raw_folder / 'imagesTr'} is missing. Supply it, or hide the raw dataset folder."])
    return group_channels(raw_folder / "imagesTr", dataset_json)


def labeled_and_held_out(raw_folder: Path, dataset_json: dict) -> dict[str, dict[str, list[Path]]]:
    """{"imagesTr": labeled scans, "imagesTs": test scans, ...}; every other folder ``images*`` is held out too.

    Held-out scans need no channel number: ``amos_0004`` is a name unless all channels are there.
    """
    ending = dataset_json["file_ending"]
    labeled = labeled_scans(raw_folder, dataset_json)
    # not the number of channels: one PNG has three
    files_per_case = mode(map(len, labeled.values())) if labeled else 1
    parts = {"imagesTr": labeled}
    for folder in sorted(raw_folder.glob("images*")):
        if folder.is_dir() and folder.name not in ("imagesTr", UNLABELED_FOLDER):
            parts[folder.name] = {}
            cases, others = by_case(read_folder(folder, ending).files, ending)
            for case, files in cases.items():
                if numbers_of(files, ending) == list(range(files_per_case)):
                    parts[folder.name][case] = files
                else:
                    others += files
            parts[folder.name].update({file.name.removesuffix(ending): [file] for file in others})
    return parts


def _without(cases: dict[str, list[Path]], problems: Problems) -> dict[str, list[Path]]:
    bad = {case for case, _ in problems}
    return {case: files for case, files in cases.items() if case not in bad}


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


def _colliding_ids(source: Path, cases: Iterable[str]) -> Problems:
    """Two ids whose preprocessed files have the same name on a file system that ignores upper and lower case."""
    owner: dict[str, str] = {}
    problems: Problems = []
    for case in sorted(cases):
        name = unicodedata.normalize("NFC", case).casefold()
        for written in (name, name + "_seg"):  # as nnU-Net calls the two arrays of a case
            other = owner.setdefault(written, case)
            if other != case:
                # twins that only differ in how an accent is encoded look the same
                alike = unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", case)
                one, two = map(ascii if alike else repr, (other, case))
                message = f"{source}: the files of {one} and {two} would have the same name. Rename one of them."
                problems += [(case, message), (other, message)]
    return problems


def _reused_files(source: Path, cases: dict[str, list[Path]], others: dict[str, dict[str, list[Path]]]) -> Problems:
    """The same file under two unlabeled ids, or listed although it is a labeled or held-out scan."""
    real = _real_path()
    owner = {real(file): str(file) for scans in others.values() for files in scans.values() for file in files}
    problems: Problems = []
    for case, files in cases.items():
        for file in map(real, files):
            if file in owner:
                problems.append((case, f"{source}: {case} is the same file as {owner[file]}. Remove the case."))
            owner[file] = f"that of {case}"
    return problems


def _real_path() -> Callable[[Path], str]:
    """os.path.realpath for many files of few folders: by itself it asks, for each, for every folder above it."""
    folder = cache(os.path.realpath)
    return lambda file: os.path.realpath(file) if os.path.islink(file) else os.path.join(folder(file.parent), file.name)


def _resolve(folder: Path, images: list[str]) -> list[Path]:
    """As nnU-Net in "dataset": relative to the dataset folder or absolute, environment variables allowed."""
    return [folder / os.path.expandvars(image) for image in images]


_WANTED = '{what} is not of the form {{"case id": {{"images": ["path", ...]}}}}.'


def _has_images(entry: object) -> TypeGuard[dict[str, list[str]]]:
    images = entry.get("images") if isinstance(entry, dict) else None
    return isinstance(images, list) and bool(images) and all(isinstance(image, str) for image in images)


def _from_json(list_file: Path) -> tuple[dict[str, list[Path]], Problems]:
    problems: Problems = []

    def once(pairs: list[tuple[str, object]]) -> dict:
        repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        if "images" in repeated:
            return {}  # an entry that cannot be used
        problems.extend((key, f"{list_file}: {key!r} is there more than once. Remove all but one.") for key in repeated)
        return dict(pairs)

    if why := why_unusable(list_file):
        raise DatasetError([f"{list_file} {why}. Correct or remove it."])
    entries = read_json(list_file, once)
    cases = {}
    for case, entry in entries.items() if isinstance(entries, dict) else [("", None)]:
        if _has_images(entry):
            cases[case] = _resolve(list_file.parent, entry["images"])
        else:
            problems.append((case, f"{list_file}: {_WANTED.format(what=f'entry {case!r}')}"))
    return cases, problems
