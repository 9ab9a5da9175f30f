"""Files that are written whole or not at all, by one process at a time."""

import hashlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from batchgenerators.utilities.file_and_folder_operations import save_json
from filelock import FileLock, Timeout

PATIENCE = 10  # seconds
INCOMING = ".incoming_"  # prefix of what is being written, before it is moved into place


def write_json(content: dict | list, file: Path) -> None:
    """Write beside and rename; makes the folder.

    Raises:
        OSError: names the file.
    """
    temporary = file.with_name(f"{INCOMING}{uuid4().hex}_{file.name}")  # process ids repeat on a cluster
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_json(content, str(temporary), sort_keys=False)
        os.replace(temporary, file)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(file)) from e
    finally:
        with suppress(OSError):  # left by a full disk
            temporary.unlink()


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
            command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
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
