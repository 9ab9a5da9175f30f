"""Segmentations that a model wrote and nobody has looked at: no annotation yet."""

import os
from pathlib import Path

from nnunetv2_crossmatch.nnunet.images import files_beside
from nnunetv2_crossmatch.self_training.record import FOLDER, RECORD, Record, prediction_file
from nnunetv2_crossmatch.utilities.files import read_json, sha256_of, write_json

SUGGESTIONS = "suggestions"  # in the raw dataset folder; nnU-Net looks only into images* and labels*
WRITTEN = "drafts.json"  # {case: SHA-256 of every draft that was ever written}


def written_by(raw_folder: Path, case: str, file: Path) -> list[Path]:
    """Folders, of drafts or of a fold's pseudo-labels, with whose models' mask of the case a file agrees to the byte.

    None if somebody changed it. Whole predictions count as the labels beside them do.
    """
    sha = sha256_of(file)
    folders = [
        found.parent
        for found in sorted((raw_folder / SUGGESTIONS).glob(f"*/{WRITTEN}"))
        if sha in read_json(found).get(case, [])
    ]
    for found in sorted((raw_folder / FOLDER).rglob(RECORD)):
        if entry := Record.read(found.parent).cases.get(case):
            written, whole = {entry["file"], entry["replaced"], entry.get("prediction")}, found.parent / file.name
            # noted by no earlier version, and a killed run may have replaced it alone
            if (entry.get("prediction") is None or entry["replaced"]) and prediction_file(whole).exists():
                written.add(sha256_of(prediction_file(whole)))
            if sha in written:
                folders.append(found.parent)
    return folders


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

    def take(self, case: str, incoming: Path) -> bool:
        """Move a draft, and what its format keeps beside it, out of the folder that it was written to.

        Returns:
            False if somebody has corrected the draft that is there; that stays.
        """
        # noted first: a run killed in between must not make a correction of the draft
        before, sha = self._written.get(case, []), sha256_of(incoming / self.file(case).name)
        self._written[case] = [*(other for other in before if other != sha), sha]
        write_json(self._written, self._record)
        self.folder.mkdir(exist_ok=True)
        if self.is_corrected(case):  # while it was predicted
            return False
        for part in sorted(incoming.iterdir()):
            os.replace(part, self.folder / part.name)
        return True

    def keep_only(self, cases: list[str]) -> list[str]:
        """Remove the drafts of other cases; those that were corrected stay and are returned."""
        others = [case for case in self._written if case not in cases and self.file(case).exists()]
        corrected = [case for case in others if self.is_corrected(case)]
        for case in others:
            if case not in corrected:
                for part in (*files_beside(self.file(case)), self.file(case)):
                    part.unlink()
        return corrected
