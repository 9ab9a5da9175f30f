import json

import pytest

from tests.conftest import REPOSITORY, run

pytestmark = pytest.mark.slow


def test_everything_is_measured(tmp_path):
    folder, out = tmp_path / "scale", tmp_path / "scale.json"
    options = f"-np 1 --steps 2 --folder {folder} --out {out}".split()
    table = run(REPOSITORY / "scripts" / "scale.py", "2", *options).stdout
    assert "2 unlabeled scans" in table

    result = json.loads(out.read_text())["unlabeled"]["2"]
    assert result["preprocess"]["scans"] == 2 and result["nothing to do"]["scans"] == 0
    assert result["check"]["scans"] == 2 + 5, "the labeled ones too"
    assert min(figures["seconds"] for figures in result.values()) > 0
    for start in ("first start", "start", "stock start"):
        assert result[start]["step_seconds"] > 0 and result[start]["peak_mib"] > 100
        assert result[start]["worker_peak_mib"] == 0, "no workers in the tests"
