"""The traces of a training: its log and its files."""

import json
from pathlib import Path

from tests.nnunet.conftest import write_log


def finished(model: Path, fold: int, *lines: str, **files: dict) -> Path:
    folder = model / f"fold_{fold}"
    write_log(folder, "1", *lines, "Validation complete")
    (folder / "checkpoint_final.pth").touch()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
