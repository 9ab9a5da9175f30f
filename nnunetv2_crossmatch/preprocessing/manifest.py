"""What the preprocessed unlabelled folder holds, and what it was made from."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_crossmatch.preprocessing.files import write_json

ARRAY_SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl")  # what nnU-Net's run_case_save writes
MANIFEST = "manifest.json"


@dataclass
class Manifest:
    """``manifest.json`` beside the arrays.

    plans: hash of what decides the arrays' content, see :func:`plans_stamp`.
    complete: whether the last preprocessing got through the whole list.
    cases: id -> {"source": :func:`source_stamp`, **:func:`~nnunetv2_crossmatch.preprocessing.scan.describe`}.
    """

    folder: Path
    plans: str | None = None
    complete: bool = False
    cases: dict[str, dict] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        file = folder / MANIFEST
        return cls(folder, **load_json(str(file))) if file.exists() else cls(folder)

    def write(self) -> None:
        """Whole or not at all."""
        content = {"plans": self.plans, "complete": self.complete, "cases": self.cases}
        write_json(content, self.folder / MANIFEST)

    def is_whole(self, case: str) -> bool:
        return case in self.cases and all((self.folder / (case + suffix)).exists() for suffix in ARRAY_SUFFIXES)

    def is_current(self, case: str, files: list[Path]) -> bool:
        return self.is_whole(case) and self.cases[case]["source"] == source_stamp(files)


def source_stamp(files: list[Path]) -> list[list[str | int]]:
    """Name, size and time of each file; not the folder, which differs from machine to machine."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def plans_stamp(plans: PlansManager, configuration: ConfigurationManager) -> str:
    """Hash of all that decides what the preprocessed arrays hold; patch and network may change freely."""
    relevant = {
        "reader": plans.plans["image_reader_writer"],
        "transpose": plans.transpose_forward,
        "intensities": plans.foreground_intensity_properties_per_channel,
        **{
            key: value
            for key, value in configuration.configuration.items()
            if key.startswith(
                ("preprocessor", "spacing", "normalization", "use_mask", "resampling_fn_data", "resampling_fn_seg")
            )
        },
    }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
