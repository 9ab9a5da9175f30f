"""Segmentations that a model wrote and nobody has looked at: no annotation yet."""

import os
from pathlib import Path

from nnunetv2_crossmatch.nnunet.images import files_beside
from nnunetv2_crossmatch.self_training.record import FOLDER, RECORD, Record
from nnunetv2_crossmatch.utilities.files import read_json, sha256_of, write_json

SUGGESTIONS = "suggestions"  # in the raw dataset folder; nnU-Net looks only into images* and labels*
WRITTEN = "drafts.json"  # {case: SHA-256 of every draft that was ever written}


def is_as_written(raw_folder: Path, case: str, file: Path) -> bool:
    """Whether a mask of the case is a draft or a pseudo-label as a model wrote it."""
    drafts = (read_json(found).get(case, []) for found in (raw_folder / SUGGESTIONS).glob(f"*/{WRITTEN}"))
    labels = (Record.read(found.parent).cases.get(case, {}) for found in (raw_folder / FOLDER).rglob(RECORD))
    written = {sha for shas in drafts for sha in shas} | {entry.get("file") for entry in labels}
    return sha256_of(file) in written


class Drafts:
    """The drafts of one model: ``suggestions/TRAINER__PLANS__CONFIG/drafts/CASE`` with the dataset's file ending."""

    def __init__(self, folder: Path, ending: str):
        self.folder, self._record, self._ending = folder / "drafts", folder / WRITTEN, ending
        self._written: dict[str, list[str]] = read_json(self._record) if self._record.exists() else {}

    def file(self, case: str) -> Path:
        return self.folder / (case + self._ending)

    def is_corrected(self, case: str) -> bool:
        """Whether somebody has changed it."""
        return self.file(case).exists() and sha256_of(self.file(case)) not in self._written.get(case, ())

    def take(self, case: str, incoming: Path) -> None:
        """Move a draft, and what its format keeps beside it, out of the folder that it was written to."""
        # noted first: a run killed in between must not make a correction of the draft
        before, sha = self._written.get(case, []), sha256_of(incoming / self.file(case).name)
        self._written[case] = [*(other for other in before if other != sha), sha]
        write_json(self._written, self._record)
        self.folder.mkdir(exist_ok=True)
        for part in sorted(incoming.iterdir()):
            os.replace(part, self.folder / part.name)

    def keep_only(self, cases: list[str]) -> list[str]:
        """Remove the drafts of other cases; those that were corrected stay and are returned."""
        others = [case for case in self._written if case not in cases and self.file(case).exists()]
        corrected = [case for case in others if self.is_corrected(case)]
        for case in others:
            if case not in corrected:
                for part in (*files_beside(self.file(case)), self.file(case)):
                    part.unlink()
        return corrected
