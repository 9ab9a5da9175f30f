"""What a shell offers as an argument: names read from the disk without nnU-Net, whose import takes seconds."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from nnunetv2_crossmatch.trainers import METHODS
from nnunetv2_crossmatch.trainers.names import known_trainers


def candidates(option: str, line: str) -> list[str]:
    """Of ``d``, ``c``, ``p``, ``f`` or ``tr``, beside what the line says already; [] where nothing is known."""
    words = line.split()
    given = dict(pairwise(words))
    if option == "d":
        return sorted({folder.name for folder in _datasets("*")})
    wanted = given.get("-d", "")
    folders = list(_datasets(f"Dataset{int(wanted):03d}_*" if wanted.isdecimal() else wanted))
    if option == "tr":
        trained = {model.name.split("__")[0] for folder in folders for model in folder.glob("*__*__*")}
        return sorted(known_trainers(METHODS) | trained)
    files = {file.stem: file for folder in folders for file in folder.glob("*.json")}
    if option == "p":
        return sorted(name for name, file in files.items() if '"configurations"' in file.read_text(errors="replace"))
    if option == "c":
        plans = files.get(given.get("-p", "nnUNetPlans"))
        return list(json.loads(plans.read_text())["configurations"]) if plans else []
    splits = files.get("splits_final")
    return [*map(str, range(len(json.loads(splits.read_text())) if splits else 0)), "all"]


def _datasets(pattern: str) -> Iterator[Path]:
    """Folders of datasets in each of nnU-Net's three."""
    for kind in ("raw", "preprocessed", "results"):
        if (folder := os.environ.get(f"nnUNet_{kind}")) and pattern:
            yield from (found for found in Path(folder).glob(pattern) if found.name.startswith("Dataset"))


def from_disk(option: str) -> dict[str, str | dict[str, str]]:
    """What shtab wants to know: a function of bash and one of zsh, which ask this module in a process of its own."""
    name, ask = f"_nnunetv2_crossmatch_{option}", f"{shlex.quote(sys.executable)} -m {__name__} {option}"
    functions = {
        # no compgen -W, which would run what a folder's name has in $()
        "bash": f'{name}() {{ local word; {ask} "$COMP_LINE" 2>/dev/null | while IFS= read -r word; do '
        '[[ $word != "$1"* ]] || printf "%q\\n" "$word"; done; }',
        "zsh": f'{name}() {{ compadd -- ${{(f)"$({ask} "$BUFFER" 2>/dev/null)"}} }}',
    }
    return {**dict.fromkeys(functions, name), "preamble": functions}


if __name__ == "__main__":
    print(*candidates(*sys.argv[1:]), sep="\n")
