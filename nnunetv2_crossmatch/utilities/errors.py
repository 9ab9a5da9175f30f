"""Errors that list every problem at once."""

from collections.abc import Iterable


class DatasetError(ValueError):
    """What is wrong with a dataset, all of it at once, each line naming the file and the fix."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(("", *self.problems)))
