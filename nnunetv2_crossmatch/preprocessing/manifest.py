"""What the preprocessed unlabeled folder holds, and what it was made from."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_crossmatch.nnunet.images import files_beside
from nnunetv2_crossmatch.preprocessing.listing import are_absent
from nnunetv2_crossmatch.utilities.files import write_json
from nnunetv2_crossmatch.utilities.versions import versions

ARRAY_SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl")  # what nnU-Net's run_case_save writes
MANIFEST = "manifest.json"
VERSION = 2  # of the entries; a manifest of another one counts as none


@dataclass
class Manifest:
    """``manifest.json`` beside the arrays.

    plans: hash of what decides the arrays' content, see :func:`plans_stamp`.
    reader: nnU-Net's class that read the scans.
    versions: of the packages that wrote it last.
    complete: whether the last preprocessing got through the whole list.
    cases: id -> {"source": :func:`source_stamp`, **:func:`~nnunetv2_crossmatch.preprocessing.scan.describe`}.
    """

    folder: Path
    version: int = VERSION
    plans: str | None = None
    reader: str | None = None
    versions: dict[str, str] = field(default_factory=versions)
    complete: bool = False
    cases: dict[str, dict] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        file = folder / MANIFEST
        content = load_json(str(file)) if file.exists() else {}
        return cls(folder, **content) if content.get("version") == VERSION else cls(folder)

    def write(self) -> None:
        """Whole or not at all."""
        write_json({key: value for key, value in vars(self).items() if key != "folder"}, self.folder / MANIFEST)

    def is_whole(self, case: str) -> bool:
        return case in self.cases and all((self.folder / (case + suffix)).exists() for suffix in ARRAY_SUFFIXES)

    def is_current(self, case: str, files: list[Path]) -> bool:
        return self.is_whole(case) and is_current(self.cases[case], files)


def is_current(entry: dict, files: list[Path]) -> bool:
    """Whether the files are as they were seen; where they are not at hand, that is not asked."""
    try:
        return entry["source"] == source_stamp(files)
    except OSError:  # not there, or not all of them
        return are_absent(files)


def source_stamp(files: list[Path]) -> list[list[str | int]]:
    """Name, size and time of each file and of what lies beside it; not the folder, which differs between machines."""
    stats = {file: file.stat() for file in files}
    stats |= {beside: beside.stat() for file in files for beside in files_beside(file)}
    return [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()]


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
