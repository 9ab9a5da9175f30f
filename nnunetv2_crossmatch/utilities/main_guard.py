"""A script that starts processes needs ``if __name__ == "__main__"``; without it each of them runs the script again."""

import ast
import inspect
import sys
from types import FrameType


def require_main_guard() -> None:
    """Before processes are started, or a training that will start some.

    Raises:
        RuntimeError: this is called from a statement of the script that a new process would run again, or does.
    """
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if frame.f_code.co_name == "<module>" and (
            name == "__mp_main__" or (name == "__main__" and _is_run_again(frame.f_code.co_filename, frame.f_lineno))
        ):
            raise RuntimeError(
                f"{frame.f_code.co_filename}, line {frame.f_lineno}: nnU-Net starts processes, and each of them would "
                'run this script again. Put what the script does below the line: if __name__ == "__main__":'
            )
        frame = frame.f_back


def _is_run_again(file: str, line: int) -> bool:
    """Whether a process that imports this file gets to this line; any condition is taken for a guard."""
    if file != _SCRIPT or _CONDITIONS is None:  # python -c, a notebook
        return False
    return not any(first <= line <= last for first, last in _CONDITIONS)


def _conditions(file: str | None) -> list[tuple[int, int]] | None:
    """First and last lines of every ``if``; None for what cannot be read, such as a zipped or compiled script."""
    try:
        with open(file or "", "rb") as stream:
            tree = ast.parse(stream.read())
    except (OSError, SyntaxError, ValueError):
        return None
    return [(part.lineno, part.end_lineno or part.lineno) for part in ast.walk(tree) if isinstance(part, ast.If)]


_SCRIPT = getattr(sys.modules["__main__"], "__file__", None)
_SPEC = getattr(sys.modules["__main__"], "__spec__", None)
_IS_PACKAGE = _SPEC is not None and _SPEC.name.endswith("__main__")  # python -m package: not imported again
# now: by the end of a training the script may have been edited
_CONDITIONS = None if _IS_PACKAGE else _conditions(_SCRIPT)
