import json

import pytest
import torch

from nnunetv2_crossmatch.trainers import records
from nnunetv2_crossmatch.trainers.records import record_resources

CPU = torch.device("cpu")


def recorded(folder) -> dict:
    return json.loads((folder / "resources.json").read_text())


def test_the_peak_of_the_process_is_in_bytes(tmp_path):
    record_resources(tmp_path, CPU)
    first = recorded(tmp_path)
    assert first["device"] == "cpu" and first["processes"] == 1
    assert 50e6 < first["peak_memory_bytes"] < 50e9  # a Python with torch
    used = torch.ones(first["peak_memory_bytes"] // 4)  # four bytes each
    record_resources(tmp_path, CPU)
    assert recorded(tmp_path)["peak_memory_bytes"] > first["peak_memory_bytes"] + used.nbytes // 4


@pytest.mark.parametrize(("device", "kept"), [("cpu", True), ("NVIDIA H200", False)])
def test_an_earlier_peak_stays_on_the_same_device(tmp_path, device, kept):
    earlier = {"peak_memory_bytes": 10**15, "device": device, "processes": 1}
    (tmp_path / "resources.json").write_text(json.dumps(earlier))
    record_resources(tmp_path, CPU)
    assert (recorded(tmp_path)["peak_memory_bytes"] == 10**15) is kept
    assert recorded(tmp_path)["device"] == "cpu"


def test_on_a_gpu_it_is_what_torch_took_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    monkeypatch.setattr(records.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(records.dist, "get_world_size", lambda: 2)
    record_resources(tmp_path, torch.device("cuda", 1))
    assert recorded(tmp_path) == {"peak_memory_bytes": 123, "device": "NVIDIA H200", "processes": 2}


def test_records_are_read_as_they_were_written_and_empty_where_there_are_none(tmp_path):
    assert records.read_method(tmp_path) == records.read_training(tmp_path) == records.read_resources(tmp_path) == {}
    records.write_method(tmp_path, "FixMatch", {"weight": 1.0})
    records.write_training(tmp_path, {"torch": "2"}, ["a"], ["b"], {"scan": "abc"})
    assert records.read_method(tmp_path) == {"method": "FixMatch", "weight": 1.0}
    assert records.read_training(tmp_path) == {
        "versions": {"torch": "2"}, "labeled": ["a"], "validation": ["b"], "unlabeled": {"scan": "abc"},
    }  # fmt: skip
