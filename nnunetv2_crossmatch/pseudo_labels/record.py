"""Where pseudo-labels lie, and what they were made with."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_crossmatch.preprocessing.files import write_json

RECORD = "pseudo_labels.json"
FOLDER = "pseudo_labels"  # in the raw dataset folder; nnU-Net looks only into images* and labels*


def pseudo_label_folder(raw_folder: Path, trainer: str, plans: str, configuration: str, fold: int | str) -> Path:
    """``nnUNet_raw/DatasetXXX_NAME/pseudo_labels/TRAINER__PLANS__CONFIG/fold_K``."""
    return raw_folder / FOLDER / f"{trainer}__{plans}__{configuration}" / f"fold_{fold}"


def sha256_of(file: Path) -> str:
    """Of the file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(file, "rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@dataclass
class Origin:
    """What the pseudo-labels of one fold were made with.

    model: SHA-256 of the checkpoint file.
    validation: labelled cases that the fold holds out.
    """

    trainer: str
    plans: str
    configuration: str
    fold: int | str
    checkpoint: str
    model: str
    threshold: float
    ignore_label: int
    validation: list[str]
    versions: dict[str, str]


@dataclass
class Record:
    """``pseudo_labels.json`` of one fold.

    cases: id -> {"file": SHA-256 as it was written, "replaced": that of the file before, "model", "threshold",
        "image": SHA-256 of the scan's voxels, "confident": share of confident voxels per predicted class}.
    """

    folder: Path
    origin: Origin | None = None
    cases: dict[str, dict] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Record":
        file = folder / RECORD
        if not file.exists():
            return cls(folder)
        content = load_json(str(file))
        return cls(folder, Origin(**content["origin"]), content["cases"])

    def write(self) -> None:
        """Whole or not at all."""
        assert self.origin is not None
        write_json({"origin": asdict(self.origin), "cases": self.cases}, self.folder / RECORD)

    def is_corrected(self, case: str, file: Path) -> bool:
        """Whether the file is not one that the command wrote."""
        entry = self.cases.get(case, {})
        # the record is written before the file, so a run killed in between leaves the replaced one
        return file.exists() and sha256_of(file) not in (entry.get("file"), entry.get("replaced"))

    def is_current(self, case: str, file: Path, image: str) -> bool:
        """Whether the file is what this model and threshold make of this image."""
        assert self.origin is not None
        entry = self.cases.get(case)
        return (
            entry is not None
            and (entry["model"], entry["threshold"], entry["image"])
            == (self.origin.model, self.origin.threshold, image)
            and file.exists()
            and entry["file"] == sha256_of(file)
        )
