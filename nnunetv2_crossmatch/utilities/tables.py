"""Tables for a terminal, and how a Dice stands in them."""

import math
from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """A line for each row, its cells below those of the row before; columns in ``right`` end below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def percent(value: float, sign: str = "") -> str:
    """A Dice or a difference in [-1, 1] as every text and page has it: in percent, one decimal; NaN as ``-``."""
    return "-" if math.isnan(value) else f"{100 * value:{sign}.1f}"
