import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from functools import partial
from subprocess import PIPE

import pytest

from nnunetv2_crossmatch.utilities.errors import DatasetError
from nnunetv2_crossmatch.utilities.files import check_writable, is_unicode, locked, read_json, read_list, write_json
from tests.conftest import small_files


def test_json_that_cannot_be_written_leaves_the_old_one_and_names_the_file(tmp_path):
    file = tmp_path / "new" / "some.json"
    write_json({"old": 1}, file)
    with small_files(2000), pytest.raises(OSError, match=f"File too large: '{file}'"):
        write_json(list(range(1000)), file)
    assert json.loads(file.read_text()) == {"old": 1}
    assert [f.name for f in file.parent.iterdir()] == ["some.json"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    check_writable(tmp_path)
    with small_files(2000), pytest.raises(OSError, match=f"File too large: '{tmp_path}'"):
        check_writable(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_killed_process_lets_go_of_its_lock(tmp_path):
    file = tmp_path / "new" / ".lock"

    if (pid := os.fork()) == 0:
        with locked(file):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert file.exists()
    with locked(file):
        pass


WAITS = """
import sys
from pathlib import Path
from nnunetv2_crossmatch.utilities import files
files.PATIENCE = 0.2
file = Path(sys.argv[1])
with files.locked(file):
    print("held", flush=True)
    input()
"""


def test_who_waits_for_a_lock_is_told_for_whom(tmp_path):
    file = tmp_path / ".lock"
    start = partial(
        subprocess.Popen, [sys.executable, "-c", WAITS, file], text=True, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    with start() as first:
        assert first.stdout.readline() == "held\n"
        second = start()
        line = second.stderr.readline()
        assert line.startswith(f"Waiting for process {first.pid} on {socket.gethostname()} (-c {file}; since ")
        assert line.endswith(f", which holds {file}.\n")
        first.communicate("\n")
        assert second.stdout.readline() == "held\n"
        second.communicate("\n")
    assert [f.name for f in tmp_path.iterdir()] == [".lock"]


def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch):
    for number in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):

        def refuse(stream, how, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", refuse)
        with (
            pytest.raises(OSError, match=f"no locks. Mount it with flock .*'{tmp_path}/.lock'"),
            locked(tmp_path / ".lock"),
        ):
            pass


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_and_lists_of_any_system_are_read(tmp_path, encoding):
    (tmp_path / "some.json").write_text('{"Müller": [1,\r\n 2]}', encoding=encoding)
    (tmp_path / "some.list").write_text("\r\nMüller 1 \r\n\tb\r\n   \r\n", encoding=encoding, newline="")
    assert read_json(tmp_path / "some.json") == {"Müller": [1, 2]}
    assert read_list(tmp_path / "some.list") == ["Müller 1", "b"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'{"a": 1,\n "b": 2,\n}', "not valid JSON: line 3, column 1"),
        (b'{"a": 1,\n "b: 2}', r"not valid JSON: line 2, column 2 \(there it reads: \"b: 2}\)"),
        (b'{"a": 1\n "b": 2}', "not valid JSON: line 2, column 2"),
        (b'{"first": [' + b"1, " * 50 + b"2,]}", r"line 1, column 164 \(there it reads: [1, ]+2,\]}\)"),
        (b"", "not valid JSON: line 1, column 1"),
        (b"[" * 100000, "not valid JSON"),
        (b'{"a": 1,\n "M\xfcller": 2}', "not UTF-8: see the special letters in line 2"),
        (b'{"a": 1, "b": 2, "a": 3}', "a is there more than once, with different values"),
        (b'{"a": [1], "a": [2], "a": [1]}', ": a is there more than once"),
    ],
)
def test_what_is_wrong_with_a_json_file_is_said_with_the_place(tmp_path, text, complaint):
    (tmp_path / "some.json").write_bytes(text)
    with pytest.raises(DatasetError, match=f"some.json.*{complaint}"):
        read_json(tmp_path / "some.json")


def test_a_key_that_is_there_twice_with_one_value_does_no_harm(tmp_path):
    (tmp_path / "some.json").write_text('{"a": {"b": 1}, "description": "", "a": {"b": 1}}')
    assert read_json(tmp_path / "some.json") == {"a": {"b": 1}, "description": ""}
    (tmp_path / "some.json").write_text('{"a": NaN}')  # it does not equal itself
    assert list(read_json(tmp_path / "some.json")) == ["a"]


def test_a_path_of_other_bytes_is_no_unicode(tmp_path):
    assert is_unicode(tmp_path / "Müller.nii")
    assert not is_unicode(tmp_path / os.fsdecode(b"M\xfcller.nii"))
