import subprocess
import sys

import pytest

SCRIPT = """
import os
from nnunetv2_crossmatch.utilities.workers import run_in_workers
{head}
    for key, future in run_in_workers(os.path.basename, {{i: (f"/a/{{i}}",) for i in range(2)}}, 2, ""):
        print(key, future.result())
"""


@pytest.mark.parametrize(
    ("head", "works"),
    [
        ('if __name__ == "__main__":', True),
        ("import sys\nif 'script.py' in sys.argv[0] and __name__ != '__mp_main__':", True),
        ("if True:", False),  # seen where the worker imports the script
        ("for _ in range(1):", False),
        ("def go():", None),
    ],
)
def test_a_script_without_its_guard_ends_and_says_what_to_add(tmp_path, head, works):
    script = SCRIPT.format(head=head) + ("go()\n" if works is None else "")
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60)
    if works:
        assert done.returncode == 0 and sorted(done.stdout.splitlines()) == ["0 0", "1 1"], done.stderr
    else:
        assert done.returncode == 1
        assert f"{tmp_path / 'script.py'}, line " in done.stderr
        assert 'Put what the script does below the line: if __name__ == "__main__":' in done.stderr


def test_one_worker_is_a_thread_and_needs_no_guard(tmp_path):
    script = SCRIPT.format(head="for _ in range(1):").replace("range(2)}, 2,", "range(2)}, 1,")
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and sorted(done.stdout.splitlines()) == ["0 0", "1 1"], done.stderr


def test_a_script_that_is_edited_while_it_runs_is_not_taken_for_one_without_a_guard(tmp_path):
    edit = "    with open(__file__, 'r+') as f: rest = f.read(); f.seek(0); f.write('\\n' * 20 + rest)\n"
    head = 'if __name__ == "__main__":\n' + edit
    (tmp_path / "script.py").write_text(SCRIPT.format(head=head))
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and sorted(done.stdout.splitlines()) == ["0 0", "1 1"], done.stderr
