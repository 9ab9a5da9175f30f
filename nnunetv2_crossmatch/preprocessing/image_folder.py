"""One folder of scans: which files are the channels of which case, and what is not used."""

import json
import re
import shlex
from pathlib import Path

from nnunetv2_crossmatch.utilities.dataset_json import channel_names
from nnunetv2_crossmatch.utilities.errors import DatasetError, some
from nnunetv2_crossmatch.utilities.folders import read_folder

UNLABELED_LIST, UNLABELED_FOLDER = "unlabeled.json", "imagesUn"
HIDDEN_LABELS = "labelsUn"  # beside it: labels of unlabeled scans that are known, on which nothing is trained

Problems = list[tuple[str | None, str]]  # the case that cannot be used, where it is one, and the message


def group_channels(folder: Path, dataset_json: dict) -> dict[str, list[Path]]:
    """Files named CASE_0000.nii.gz, CASE_0001.nii.gz, ... by case.

    Raises:
        DatasetError: files with the dataset's ending but without a channel number; missing channels.
    """
    cases, problems = from_folder(folder, dataset_json)
    if problems:
        raise DatasetError(message for _, message in problems)
    return cases


def by_case(files: list[Path], ending: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """Files called CASE_NNNN by case, whether the number is that of a channel or not; and the others."""
    cases: dict[str, list[Path]] = {}
    others = []
    for file in files:
        if match := re.fullmatch(r"(.+)_\d{4}", file.name.removesuffix(ending), re.DOTALL):
            cases.setdefault(match[1], []).append(file)
        else:
            others.append(file)
    return cases, others


def numbers_of(files: list[Path], ending: str) -> list[int]:
    """Those at the end of their names."""
    return [int(file.name.removesuffix(ending)[-4:]) for file in files]


def from_folder(folder: Path, dataset_json: dict) -> tuple[dict[str, list[Path]], Problems]:
    """:func:`group_channels`, and what is wrong with the other files."""
    ending = dataset_json["file_ending"]
    channels = len(channel_names(dataset_json))
    cases, unnumbered = by_case(read_folder(folder, ending).files, ending)
    problems: Problems = []
    are_several = len(cases) > 1
    from_1 = list(range(1, channels + 1))
    count_from_1 = (
        are_several and not unnumbered and all(numbers_of(files, ending) == from_1 for files in cases.values())
    )
    for case, files in list(cases.items()):
        found = numbers_of(files, ending)
        without_gap = found == list(range(len(found)))
        if found[-1] >= channels and not (without_gap and are_several):  # amos_0001, amos_0004: part of the name
            unnumbered += cases.pop(case)
        elif not without_gap:
            file = next(file for i, file in enumerate(files) if found[i] != i)
            problems.append((case, f"{file}: a channel before it is missing. Supply it or remove the case."))
    if count_from_1:
        new_names = ", ".join(f"_{number:04d} to _{number - 1:04d}" for number in from_1)
        problems.append((None, f"{folder}: channels count from 0. Rename of every case, in this order: {new_names}."))
    elif unnumbered:
        first = unnumbered[0].name
        fix = f"Rename {first} to {first.removesuffix(ending)}_0000{ending}, and so on."
        if channels > 1 and by_case(unnumbered, ending)[0]:
            last = f"CASE_{channels - 1:04d}{ending}"
            fix = f"Call a case's channels CASE_0000{ending} to {last}, or one file of all CASE_0000{ending}."
        elif not cases:
            files_there = f"{shlex.quote(str(folder))}/*{ending}"
            fix += f' All of them: for f in {files_there}; do mv "$f" "${{f%{ending}}}_0000{ending}"; done'
        names = some([file.name for file in unnumbered])
        problems.append((None, f"{folder}: {len(unnumbered)} without channel number ({names}). {fix}"))
    return cases, problems


def left_out_of(folder: Path, dataset_json: dict) -> list[str]:
    """What lies in a folder of scans and is not used, a line for each kind, and what can be done."""
    ending = dataset_json["file_ending"]
    found = read_folder(folder, ending)
    deep = {below: sorted(below.rglob(f"[!.]*{ending}")) for below in found.folders}
    if not (scans := [scan for scans in deep.values() for scan in scans]):
        empty = [f"{folder}: {len(deep)} folders below it not used ({some([f.name for f in deep])})."] if deep else []
        return [*empty, *found.left_out]
    line = (
        f"{folder}: {len(scans)} {ending} files not used, because they lie in folders of their own "
        f"({some([str(scan.relative_to(folder)) for scan in scans])})."
    )
    if folder.name == UNLABELED_FOLDER:
        # named by its folders as well: in folders of patients the files often have the same names
        first = scans[0].relative_to(folder).as_posix()
        case = re.sub(r"_\d{4}$", "", first.removesuffix(ending)).replace("/", "_")
        entry = json.dumps({case: {"images": [f"{folder.name}/{first}"]}}, ensure_ascii=False)[1:-1]
        line += f" List them in {folder.with_name(UNLABELED_LIST)}, all scans in one pair of braces, as: {entry}"
    else:
        line += f" Move them into {folder}."
    return [line, *found.left_out]
