"""Segmentations that a model wrote and nobody has looked at: no annotation yet."""

from pathlib import Path

from nnunetv2_crossmatch.self_training.record import FOLDER, RECORD, Record
from nnunetv2_crossmatch.utilities.files import read_json, sha256_of

SUGGESTIONS = "suggestions"  # in the raw dataset folder; nnU-Net looks only into images* and labels*
DRAFTS = "drafts"
DRAFTS_RECORD = "drafts.json"  # {case: SHA-256 of the draft as it was written}


def is_as_written(raw_folder: Path, case: str, file: Path) -> bool:
    """Whether a mask of the case is a draft or a pseudo-label as the model wrote it."""
    drafts = (read_json(found).get(case) for found in (raw_folder / SUGGESTIONS).glob(f"*/{DRAFTS_RECORD}"))
    labels = (Record.read(found.parent).cases.get(case, {}) for found in (raw_folder / FOLDER).rglob(RECORD))
    return sha256_of(file) in {*drafts, *(entry.get("file") for entry in labels)}
