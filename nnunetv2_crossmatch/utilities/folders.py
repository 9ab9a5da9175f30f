"""What of a folder of scans or masks is used, and what is not."""

import os
import re
import shlex
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_crossmatch.utilities.errors import some

_LITTER = re.compile(r"\._.*|\.DS_Store|__MACOSX|\.(Spotlight-|Trash|fseventsd).*|Icon\r|Thumbs\.db|desktop\.ini", re.I)
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_GZIP = {(".nii.gz", ".nii"): "gzip", (".nii", ".nii.gz"): "gunzip"}  # (ending wanted, ending found) -> command


@dataclass(frozen=True)
class Folder:
    """The entries of a folder.

    files: those with the dataset's ending, sorted by name; a link may lead nowhere.
    folders: those below it, unless their names have the ending.
    left_out: what else lies there, a line for each kind.
    """

    files: list[Path]
    folders: list[Path]
    left_out: list[str]


def read_folder(folder: Path, ending: str) -> Folder:
    """Sort the entries of a folder; folders below it are not looked into."""
    kinds: dict[str, list[str]] = defaultdict(list)
    files, folders = [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):  # one look at each: there may be thousands
        name, lower = entry.name, entry.name.lower()
        if _LITTER.fullmatch(name):
            kinds["litter"].append(name)
        elif name.startswith("."):
            kinds["hidden"].append(name)
        elif name.endswith(ending):
            files.append(folder / name)
        elif entry.is_dir():
            folders.append(folder / name)
        elif lower.endswith(ending.lower()):
            kinds["case"].append(name)
        elif lower.endswith(_ARCHIVES):
            kinds["archive"].append(name)
        else:
            kinds["other"].append(name)
    known = {name for file in files for name in _stems(file.name, ending)}
    # the spacing of a TIFF, or what BIDS says of a scan
    kinds["other"] = [name for name in kinds["other"] if not (name.endswith(".json") and name[:-5] in known)]
    why = {
        "other": f"do not end in {ending}, as dataset.json says{_conversion(folder, ending, kinds['other'])}",
        "case": f"do not end in {ending} in exactly these letters. Rename them",
        "archive": "are archives. Unpack them",
        "hidden": "are hidden, their names beginning with a dot. Rename or remove them",
        "litter": "are of the operating system. That does no harm",
    }
    return Folder(
        files,
        folders,
        [
            f"{folder}: {len(kinds[kind])} not used ({some(kinds[kind])}): they {reason}."
            for kind, reason in why.items()
            if kinds[kind]
        ],
    )


def is_litter(file: Path) -> bool:
    """What operating systems leave behind, and nobody wants to read."""
    return _LITTER.fullmatch(file.name) is not None


def _stems(name: str, ending: str) -> tuple[str, str]:
    stem = name.removesuffix(ending)
    return stem, re.sub(r"_\d{4}$", "", stem)


def _conversion(folder: Path, ending: str, names: list[str]) -> str:
    for (wanted, found), command in _GZIP.items():
        if wanted == ending and any(name.endswith(found) for name in names):
            return f". For {found} run: {command} {shlex.quote(str(folder))}/*{found}"
    return ". Convert or remove them"
