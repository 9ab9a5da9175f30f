"""How the runs stand, on a terminal as a table that is redrawn, elsewhere as lines of what has changed."""

import shutil
import sys

from nnunetv2_crossmatch.nnunet.run_folder import Progress, RunFolder
from nnunetv2_crossmatch.utilities.durations import duration
from nnunetv2_crossmatch.utilities.tables import aligned

TITLES = ("trainer", "fold", "state", "epoch", "s/epoch", "trained", "left", "")
UP, CLEAR = "\x1b[{}F", "\x1b[J"


class Table:
    """Prints to stdout."""

    def __init__(self) -> None:
        self._states: dict[RunFolder, str] = {}
        self._drawn = 0  # lines

    def show(
        self, states: dict[RunFolder, str], progress: dict[RunFolder, Progress], errors: dict[RunFolder, str]
    ) -> None:
        size = shutil.get_terminal_size()
        if sys.stdout.isatty() and len(states) + 2 < size.lines:  # what has left the screen cannot be redrawn
            lines = [line[: size.columns] for line in format_table(states, progress, errors)]
            print((UP.format(self._drawn) if self._drawn else "") + CLEAR + "\n".join(lines), flush=True)
            self._drawn = len(lines)
        else:
            for run, state in states.items():
                if state != self._states.get(run, "waiting"):
                    so_far = f" ({_done(states)})" if state == "done" else ""
                    print(f"{run}: {state}{so_far}" + (f": {errors[run]}" if run in errors else ""), flush=True)
        self._states = dict(states)


def format_table(
    states: dict[RunFolder, str], progress: dict[RunFolder, Progress], errors: dict[RunFolder, str]
) -> list[str]:
    rows = [TITLES]
    for run, state in states.items():
        epoch, epochs, seconds, elapsed = progress[run]
        reached = "" if epoch is None else f"{epoch}/{epochs or '?'}"
        per_epoch = "" if seconds is None else f"{seconds:.3g}"
        left = progress[run].left if state in ("waiting", "running") else None
        times = (duration(elapsed) if elapsed else "", "" if left is None else duration(left))
        rows.append((run.trainer, run.fold_and_seed, state, reached, per_epoch, *times, errors.get(run, "")))
    return [*aligned(rows), _done(states)]


def _done(states: dict[RunFolder, str]) -> str:
    return f"{list(states.values()).count('done')} of {len(states)} done"
