"""What the trainer of a round is called: by it nnU-Net and pseudo-labels have a folder for each round and teacher."""

import re
from typing import NamedTuple

STUDENT = "nnUNetTrainerPseudoLabel"
_LENGTH = r"(?:_(?:[1-9]\d*epochs?|smoke))?"
_ROUND = re.compile(rf"(?P<student>{STUDENT}{_LENGTH})_round(?P<number>[1-9]\d*)_of_(?P<teacher>\w+)")


class Round(NamedTuple):
    """A round of self-training.

    student: nnUNetTrainerPseudoLabel, of whatever length.
    number: 0 is the teacher's own.
    teacher: whose labels the first round trains on.
    """

    student: str
    number: int
    teacher: str

    @property
    def trainer(self) -> str:
        return f"{self.student}_round{self.number}_of_{self.teacher}" if self.number else self.teacher

    @property
    def before(self) -> "Round":
        return self._replace(number=self.number - 1)

    @classmethod
    def parse(cls, trainer: str) -> "Round | None":
        """None for a trainer of no round."""
        found = _ROUND.fullmatch(trainer)
        return cls(found["student"], int(found["number"]), found["teacher"]) if found else None


def is_student(trainer: str) -> bool:
    return re.fullmatch(STUDENT + _LENGTH, trainer) is not None
