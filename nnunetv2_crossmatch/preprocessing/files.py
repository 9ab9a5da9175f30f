"""JSON files that are written whole or not at all."""

import os
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import save_json


def write_json(content: dict | list, file: Path) -> None:
    """Write beside and rename; makes the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_json(content, str(temporary), sort_keys=False)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)  # left by a full disk
