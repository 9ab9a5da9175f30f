import json

import pytest

from nnunetv2_crossmatch.self_training.record import RECORD, Record


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"cases": {"scan": {"file": "0"}}})])
def test_a_foreign_record_is_named_with_the_fix(tmp_path, content):
    assert Record.read(tmp_path).cases == {}
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(ValueError, match=rf"{RECORD} is not a record of this version. Move .* away and label again"):
        Record.read(tmp_path)
