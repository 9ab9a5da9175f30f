"""Faults are made for real, in a process of their own; a line is tried where that costs no download."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nnunetv2
import pytest

from nnunetv2_crossmatch import doctor
from nnunetv2_crossmatch.doctor import REGISTER, REGISTRATION
from tests.conftest import use_folders

pytestmark = pytest.mark.slow

NNUNET = Path(nnunetv2.__path__[0])


@pytest.fixture
def healthy(tmp_path, monkeypatch) -> Path:
    """Folder for faults. It comes first on Python's path; but for them the installation is in order."""
    use_folders(tmp_path, monkeypatch.setenv)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return tmp_path


def examine() -> tuple[int, dict[str, str | None]]:
    """Exit status, and what the doctor says with the line that it prints under it."""
    code = "import sys; from nnunetv2_crossmatch.cli import main; main(['doctor'])"
    process = subprocess.run([sys.executable, "-W", "ignore", "-c", code], text=True, capture_output=True)
    assert process.stderr == ""
    findings: dict[str, str | None] = {}
    for line in process.stdout.splitlines():
        if line.startswith(("ok       ", "problem  ")):
            findings[line[9:]] = None
        elif line != "Next: nnUNetv2_crossmatch check -d DATASET":
            findings[list(findings)[-1]] = line.strip()
    return process.returncode, findings


def fix(findings: dict[str, str | None], beginning: str) -> str | None:
    """The line under the one finding that begins so."""
    (found,) = [line for message, line in findings.items() if message.startswith(beginning)]
    return found


def fake_metadata(folder: Path, package: str, version: str, **files: str) -> None:
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    for name, content in files.items():
        (info / f"{name}.json").write_text(content)


def nnunet_without_registration(folder: Path) -> None:
    shutil.copytree(NNUNET, folder / "nnunetv2", ignore=shutil.ignore_patterns(REGISTRATION.name, "__pycache__"))


def test_a_sound_installation_has_no_problem(healthy):
    status, findings = examine()
    assert status == 0 and not any(findings.values()), findings
    assert any(message.startswith("nnUNetTrainerCrossMatch through ") for message in findings)


def test_every_fault_is_found_with_the_line_that_mends_it(healthy, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.setenv("nnUNet_preprocessed", str(healthy / "a file"))
    monkeypatch.setenv("nnUNet_results", str(healthy / "not there"))
    (healthy / "a file").touch()
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    (healthy / "torchvision").mkdir()  # as with PyPI's beside a torch for CPUs
    (healthy / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    fake_metadata(healthy, "nnunetv2", "2.7.1")
    (healthy / "nvidia-smi").write_text("#!/bin/sh\n")
    (healthy / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    status, findings = examine()
    assert status == 2
    assert fix(findings, "nnUNet_raw is not set") == "mkdir -p ~/nnUNet_raw && export nnUNet_raw=~/nnUNet_raw"
    assert fix(findings, "nnUNet_preprocessed is").endswith("export nnUNet_preprocessed=~/nnUNet_preprocessed")
    assert fix(findings, "nnUNet_results is") == f"mkdir -p '{healthy / 'not there'}'"
    assert fix(findings, "nnUNet_n_proc_DA is '0'") == "unset nnUNet_n_proc_DA"
    assert fix(findings, "nnU-Net 2.7.1 in ") == 'pip install --upgrade "nnunetv2>=2.8"'
    assert fix(findings, "torch ") == "unset CUDA_VISIBLE_DEVICES"
    assert fix(findings, "cannot import timm") == "pip install --force-reinstall torch torchvision"
    assert fix(findings, "nnUNetTrainerCrossMatch through ") is None  # found before what needs timm


def test_an_nnunet_elsewhere_wants_an_external_folder_and_the_line_makes_it(healthy, monkeypatch):
    nnunet_without_registration(healthy)
    status, findings = examine()
    assert (status, fix(findings, "nnU-Net does not find nnUNetTrainerCrossMatch")) == (2, REGISTER)
    show = f'{REGISTER} && printf %s "$nnUNet_extTrainer"'
    folder = subprocess.run(["bash", "-c", show], check=True, text=True, capture_output=True).stdout
    monkeypatch.setenv("nnUNet_extTrainer", folder)
    status, findings = examine()
    assert status == 0
    assert f"nnUNetTrainerCrossMatch through nnUNet_extTrainer={folder}" in findings


def test_a_registration_that_is_gone_wants_the_package_installed_again(healthy):
    nnunet_without_registration(healthy)
    origin = '{"url": "file:///home/me/my%20clone", "dir_info": {"editable": true}}'
    fake_metadata(healthy, "nnunetv2_crossmatch", "0.1.0", direct_url=origin)
    line = "pip install --force-reinstall --no-deps -e '/home/me/my clone'"
    assert fix(examine()[1], "nnU-Net does not find") == line


def test_without_torch_the_rest_is_still_said(healthy):
    (healthy / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    status, findings = examine()
    assert status == 2
    assert fix(findings, "nnU-Net ") is None
    assert fix(findings, "cannot import torch (ImportError: libcudart") == (
        "pip install --force-reinstall torch torchvision"
    )


def test_an_editable_nnunet_that_is_hidden_by_our_registrations_folder(healthy, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: type("Namespace", (), {"origin": None}))
    monkeypatch.setattr(doctor, "_source", lambda package: f"-e /clones/{package}")
    *_, last = doctor.examine()
    assert last.fix == "pip install --config-settings editable_mode=compat -e /clones/nnunetv2"


def test_results_that_cannot_be_written_are_a_problem_and_raw_scans_need_not_be(healthy, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    fixes = {finding.message.split()[0]: finding.fix for finding in doctor._paths()}
    assert fixes.pop("nnUNet_raw") is None
    assert all(f"export {name}=~/{name}" in line for name, line in fixes.items()) and len(fixes) == 2
