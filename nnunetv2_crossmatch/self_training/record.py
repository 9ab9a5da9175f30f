"""Where pseudo-labels lie, and what they were made with."""

import hashlib
from dataclasses import dataclass, field, fields
from pathlib import Path

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.utilities.files import read_json, sha256_of, write_json

RECORD = "pseudo_labels.json"
PREDICTIONS = "predictions"
FOLDER = "pseudo_labels"  # in the raw dataset folder; nnU-Net looks only into images* and labels*


def pseudo_label_folder(raw_folder: Path, model: RunFolder) -> Path:
    """What a trained fold labels: ``nnUNet_raw/DatasetXXX_NAME/pseudo_labels/TRAINER__PLANS__CONFIG/fold_K``."""
    return raw_folder / FOLDER / model.model_folder.name / model.path.name


@dataclass
class Origin:
    """What a fold's pseudo-labels are made with.

    folds: whose models labeled together; several only for fold "all".
    model: SHA-256 of the checkpoint file, see :func:`model_hash`.
    labels: dataset.json's, with an ignore label.
    validation: labeled cases that the model held out.
    """

    trainer: str
    plans: str
    configuration: str
    fold: int | str
    folds: list[int | str]
    checkpoint: str
    model: str
    threshold: float
    labels: dict
    validation: list[str]
    versions: dict[str, str]

    @classmethod
    def of(cls, entry: dict) -> "Origin":
        entry = {"folds": [entry["fold"]], **entry}  # earlier versions knew no others
        return cls(**{f.name: entry[f.name] for f in fields(cls)})


@dataclass
class Record:
    """``pseudo_labels.json`` of one fold.

    cases: id -> {**its :class:`Origin`, "image": :func:`image_stamp`, "file": SHA-256 as it was written,
        "prediction": that of the whole prediction (earlier versions have none), "replaced": that of the file before,
        until the new one is there, "confident": share of confident voxels per predicted class}; the newest is the last.
    left_out: id -> why no training takes it.
    """

    folder: Path
    cases: dict[str, dict] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Empty where there is no file.

        Raises:
            ValueError: a file that is not such a record.
        """
        file = folder / RECORD
        if not file.exists():
            return cls(folder)
        needed = {*(f.name for f in fields(Origin)), "image", "file", "replaced", "confident"} - {"folds"}
        try:
            content = read_json(file)
            cases = content["cases"]
            whole = all(needed <= entry.keys() for entry in cases.values())
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise ValueError(f"{file} is not a record of this version. Move {folder} away and label again.")
        return cls(folder, cases, content.get("left_out", {}))

    def write(self) -> None:
        """Whole or not at all."""
        write_json({"cases": self.cases, "left_out": self.left_out}, self.folder / RECORD)

    def add(self, case: str, entry: dict) -> None:
        """As the newest; written at once."""
        self.cases.pop(case, None)
        self.cases[case] = entry
        self.write()

    def is_corrected(self, case: str, file: Path) -> bool:
        """Whether the file is not one that the command wrote."""
        return file.exists() and (case not in self.cases or is_corrected(self.cases[case], sha256_of(file)))

    def is_current(self, case: str, file: Path, origin: Origin, image: list) -> bool:
        """Whether the file is what this model and threshold make of this image."""
        entry = self.cases.get(case, {})
        wanted = {key: getattr(origin, key) for key in ("model", "threshold", "labels", "validation")}
        return (
            file.exists()
            and prediction_file(file).exists()
            and sha256_of(file) == entry.get("file")
            and all(entry[key] == value for key, value in {**wanted, "image": image}.items())
        )


def prediction_file(label: Path) -> Path:
    """The whole prediction that a label's sure voxels are of."""
    return label.parent / PREDICTIONS / label.name


def model_hash(checkpoints: list[Path]) -> str:
    """SHA-256 of the file; of several, that of theirs."""
    hashes = [sha256_of(checkpoint) for checkpoint in checkpoints]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def image_stamp(entry: dict) -> list:
    """SHA-256 of the voxels and the spacing, from a scan's entry in the manifest."""
    return [entry["sha256"], entry["spacing"]]


def is_corrected(entry: dict, file: str) -> bool:
    """Whether a file with this SHA-256 is not one that the command wrote."""
    # the record is written before the file, so a run killed in between leaves the replaced one
    return file not in (entry["file"], entry["replaced"])
