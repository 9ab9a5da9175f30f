"""Errors that list every problem at once."""

from collections.abc import Iterable, Sequence


class DatasetError(ValueError):
    """What is wrong with a dataset, all of it at once, each line naming the file and the fix."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(("", *self.problems)))


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
