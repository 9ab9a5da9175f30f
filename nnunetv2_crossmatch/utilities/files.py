"""Files that are written whole or not at all, by one process at a time, and read as whatever system wrote them."""

import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from batchgenerators.utilities.file_and_folder_operations import save_json
from filelock import FileLock, Timeout

from nnunetv2_crossmatch.utilities.errors import DatasetError, printable, some

PATIENCE = 10  # seconds
INCOMING = ".incoming_"  # prefix of what is being written, before it is moved into place


def write_json(content: dict | list, file: Path) -> None:
    """Write beside and rename; makes the folder.

    Raises:
        OSError: names the file.
    """
    _write_whole(file, lambda temporary: save_json(content, str(temporary), sort_keys=False))


def write_text(content: str, file: Path) -> None:
    """As :func:`write_json`, in UTF-8."""
    _write_whole(file, lambda temporary: temporary.write_text(content, "utf-8"))


def _write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    temporary = file.with_name(f"{INCOMING}{uuid4().hex}_{file.name}")  # process ids repeat on a cluster
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, file)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(file)) from e
    finally:
        with suppress(OSError):  # left by a full disk
            temporary.unlink()


def read_text(file: Path) -> str:
    """A text written by hand: UTF-8, UTF-16 or UTF-32, with a byte order mark or without.

    Raises:
        DatasetError: it cannot be read, or is in none of these encodings.
    """
    try:
        content = file.read_bytes()
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as e:
        line = content[: e.start].count(b"\n") + 1
        raise DatasetError([f"{file} is not UTF-8: see the special letters in line {line}. Save it as UTF-8."]) from e
    except OSError as e:
        raise DatasetError([f"{file} cannot be read: {e.strerror}."]) from e


def read_list(file: Path) -> list[str]:
    """The lines of a list that are not blank, without the blanks around them. Raises as :func:`read_text`."""
    return [name for line in read_text(file).splitlines() if (name := line.strip())]


def read_json(file: Path, pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """A JSON file written by hand.

    Args:
        pairs_hook: ``object_pairs_hook`` of json; without one a key that an object has twice with different
            values is an error.

    Raises:
        DatasetError: as by :func:`read_text`; no JSON, with line and column.
    """
    repeated: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict:
        content = dict(pairs)
        repeated.extend(
            dict.fromkeys(key for key, value in pairs if value is not content[key] and value != content[key])
        )
        return content

    text = read_text(file)
    try:
        content = json.loads(text, object_pairs_hook=pairs_hook or once)
    except json.JSONDecodeError as e:
        around = text[max(e.pos - e.colno + 1, e.pos - 30) : e.pos + 30].partition("\n")[0].strip()
        shown = f" (there it reads: {around})" if around else ""
        raise DatasetError(
            [
                f"{file} is not valid JSON: line {e.lineno}, column {e.colno}{shown}: {e.msg}. Look there, and just "
                "before, for a comma, quote or bracket that is missing or too many."
            ]
        ) from e
    except (ValueError, RecursionError) as e:
        raise DatasetError([f"{file} is not valid JSON: {e}."]) from e
    if repeated:
        raise DatasetError(
            [f"{file}: {some(repeated)} is there more than once, with different values. Remove all but one."]
        )
    return content


def is_unicode(file: Path) -> bool:
    """Whether the path is text; SimpleITK aborts the process at any other bytes, as Windows puts into zip files."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return False
    return True


NO_UNICODE = "has a name that is not valid Unicode (special letters of an old zip file?), which image readers refuse"


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Wait for the lock and hold it; makes the folder. The system takes it from a process that is killed.

    Who waits longer than ``PATIENCE`` seconds is told on stderr for whom: the holder leaves its name beside the lock.

    Raises:
        OSError: the file cannot be written, or its file system has no locks.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if os.name != "nt":
        _check_flock(file)
    lock, holder = FileLock(file), file.with_name(file.name + ".holder")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        print(f"Waiting for {_name_of(holder)}, which holds {file}.", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        with suppress(OSError):  # a name is no reason to fail
            since = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
            command = printable(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()} ({command}; since {since})", "utf-8")
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _name_of(holder: Path) -> str:
    try:
        return holder.read_text("utf-8")
    except (OSError, ValueError):  # it has just begun or ended
        return "another process"


def _check_flock(file: Path) -> None:
    """FileLock would wait forever, or take the mere file for a lock, which a killed process leaves behind."""
    import fcntl  # Windows has none

    with open(file, "a+") as stream:  # NFS grants a shared lock to a process that may only read
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # another process has it
        except OSError as e:
            reason = f"{e.strerror}: this file system has no locks. Mount it with flock or preprocess on another one"
            raise OSError(e.errno, reason, str(file)) from e


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing; only for the process that holds the folder's lock."""
    for leftover in folder.glob(INCOMING + "*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)  # a killed process's worker may still be about to end
        else:
            leftover.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Ask the disk itself whether it is full: libraries say so in words of their own, or not at all.

    Raises:
        OSError: not even a megabyte can be written.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(1 << 20))
            stream.flush()
            os.fsync(stream.fileno())  # a quota on a network disk
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(folder)) from e


def sha256_of(file: Path) -> str:
    """Of the file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(file, "rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
