import errno
import fcntl
import json
import os
import signal

import pytest

from nnunetv2_crossmatch.utilities.files import check_writable, locked, write_json
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
