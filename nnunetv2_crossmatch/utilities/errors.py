"""Errors that list every problem at once."""

from collections.abc import Collection, Iterable
from itertools import islice


class DatasetError(ValueError):
    """What is wrong with a dataset, all of it at once, each line naming the file and the fix."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = [printable(problem) for problem in problems]
        super().__init__("\n".join(("", *self.problems)))


def printable(text: str) -> str:
    """As it is, but for bytes of file names that are no Unicode: these can be printed and logged only escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def some(names: Collection[str], at_most: int = 3) -> str:
    """The first of them in one line, and how many more there are."""
    shown = ", ".join(name.replace("\n", "\\n") for name in islice(names, at_most))
    return shown + (f" and {len(names) - at_most} more" if len(names) > at_most else "")
