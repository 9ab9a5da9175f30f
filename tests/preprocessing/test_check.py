import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.preprocessing import content as content_module
from nnunetv2_crossmatch.preprocessing.check import accept_leaks, check_dataset
from nnunetv2_crossmatch.preprocessing.content import update_content
from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.preprocessing.leaks import find_leaks, scans_of
from nnunetv2_crossmatch.preprocessing.scan import BadScan, describe, read_scan
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.conftest import DATASET, ON_DEVICE, REAL, make_raw_dataset, use_folders


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    use_folders(tmp_path, monkeypatch.setenv)
    make_raw_dataset(tmp_path / "raw" / DATASET, labeled=3, unlabeled=3, test=2)
    return tmp_path / "raw" / DATASET


@pytest.fixture
def preprocessed(raw) -> Path:
    return raw.parents[1] / "preprocessed" / DATASET


def dataset_json(raw: Path) -> dict:
    return json.loads((raw / "dataset.json").read_text())


def look(raw: Path, preprocessed: Path):
    return update_content(Dataset(raw, preprocessed, dataset_json(raw)), 1)


def save_again(source: Path, target: Path) -> None:
    """The same voxels in a file that differs in every way."""
    image = sitk.Cast(sitk.ReadImage(str(source)), sitk.sitkFloat64)
    image.SetSpacing((2, 2, 2))
    image.SetMetaData("descrip", "saved again")
    sitk.WriteImage(image, str(target))


def test_every_scan_is_read_once(raw, preprocessed, monkeypatch):
    content, problems = look(raw, preprocessed)
    assert {part: list(cases) for part, cases in content.items()} == {
        "imagesTr": ["case0", "case1", "case2"],
        "unlabeled": ["scan0", "scan1", "scan2"],
        "imagesTs": ["test0", "test1"],
    }
    assert not any(problems.values())
    entry = content["imagesTr"]["case0"]
    assert (entry["shape"], entry["spacing"]) == ([16, 24, 24], [1, 1, 1])

    read = []
    original = content_module.run_in_workers
    monkeypatch.setattr(
        content_module, "run_in_workers", lambda f, jobs, *args: (read.extend(jobs), original(f, jobs, *args))[1]
    )
    assert look(raw, preprocessed)[0] == content
    assert read == []
    shutil.copy(raw / "imagesUn" / "scan1_0000.nii.gz", raw / "imagesUn" / "scan0_0000.nii.gz")
    changed, _ = look(raw, preprocessed)
    assert read == [("unlabeled", "scan0")]
    assert changed["unlabeled"]["scan0"]["sha256"] == content["unlabeled"]["scan1"]["sha256"]


def test_what_preprocessing_saw_is_not_read_again(dataset, monkeypatch, capsys):
    main(["preprocess", "-d", "901", "-c", "3d_fullres", "-p", "nnUNetPlansSmall", "-np", "1"])
    train = f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr nnUNetTrainerCrossMatch -p "
    assert capsys.readouterr().out.endswith(f"Ready.\nNext: {train}nnUNetPlansSmall{ON_DEVICE}\n")
    main(["check", "-d", "901", "-np", "1"])
    assert capsys.readouterr().out.endswith(f"Next: {train}nnUNetPlans{ON_DEVICE}\n"), "the same arrays"
    raw, preprocessed = dataset / "raw" / DATASET, dataset / "preprocessed" / DATASET
    (preprocessed / "content.json").unlink()
    read = []
    original = content_module.run_in_workers
    monkeypatch.setattr(
        content_module, "run_in_workers", lambda f, jobs, *args: (read.extend(jobs), original(f, jobs, *args))[1]
    )
    content, _ = look(raw, preprocessed)
    assert len(content["unlabeled"]) == 4
    assert {part for part, _ in read} == {"imagesTr", "imagesTs"}


def test_a_scan_saved_anew_is_recognized_and_can_be_accepted(raw, preprocessed, capsys):
    save_again(raw / "imagesTs" / "test1_0000.nii.gz", raw / "imagesUn" / "other_0000.nii.gz")
    with pytest.raises(SystemExit):
        main(["check", "-d", "901", "-np", "1"])
    output = capsys.readouterr()
    assert "The same image: imagesTs/test1 = unlabeled/other." in output.err
    assert "3 scans in imagesTr, 2 scans in imagesTs, 4 scans in unlabeled" in output.out
    assert output.err.endswith(f"Not ready: 1 to mend, named above. Then: nnUNetv2_crossmatch check -d {DATASET}\n")

    main(["check", "-d", "901", "-np", "1", "--accept"])
    main(["check", "-d", "901", "-np", "1"])
    assert "warning: The same image: imagesTs/test1 = unlabeled/other." in capsys.readouterr().err
    save_again(raw / "imagesTr" / "case0_0000.nii.gz", raw / "imagesUn" / "more_0000.nii.gz")
    with pytest.raises(SystemExit):
        main(["check", "-d", "901", "-np", "1"])  # what was not there when the other was accepted


def test_the_verdict_and_the_next_step(raw, preprocessed, capsys):
    main(["check", "-d", "901", "-np", "1"])
    _, ready, page, then = capsys.readouterr().out.splitlines()
    assert ready == "Ready." and page.endswith(f"leave them out: {preprocessed / 'unlabeled_scans.html'}")
    assert then == "Next: nnUNetv2_plan_and_preprocess -d 901"
    (raw / "imagesTs" / "notes.txt").touch()
    shutil.rmtree(raw / "imagesUn")
    main(["check", "-d", "901", "-np", "1"])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "Nothing to mend, 1 warning above.",
        f"There is nothing unlabeled to learn from: put the unlabeled scans into {raw / 'imagesUn'}.",
        f"Next: nnUNetv2_crossmatch check -d {DATASET}",
    ]


def test_an_accepted_leak_of_scans_that_are_gone_stops_nothing(raw, preprocessed, capsys):
    save_again(raw / "imagesTs" / "test1_0000.nii.gz", raw / "imagesUn" / "other. x_0000.nii.gz")
    main(["check", "-d", "901", "-np", "1", "--accept"])
    (raw / "imagesTs").rename(raw / "elsewhere")
    capsys.readouterr()
    main(["check", "-d", "901", "-np", "1"])
    error = capsys.readouterr().err
    assert "accepted_leaks.json: scans of accepted leaks that are not here: 1 (imagesTs/test1)" in error
    assert "--accept" not in error
    (raw / "elsewhere").rename(raw / "imagesTs")
    main(["check", "-d", "901", "-np", "1"])  # still accepted

    (raw / "imagesUn" / "other. x_0000.nii.gz").rename(raw / "imagesUn" / "other. y_0000.nii.gz")
    findings = check_dataset(Dataset(raw, preprocessed, dataset_json(raw)), 1)
    assert findings.bad == [] and len(findings.leaks) == 1, "what was accepted was another scan"
    main(["check", "-d", "901", "-np", "1", "--accept"])
    main(["check", "-d", "901", "-np", "1"])
    (message,) = json.loads((preprocessed / "accepted_leaks.json").read_text())
    assert scans_of(message) == ["imagesTs/test1", "unlabeled/other. y"]
    (preprocessed / "accepted_leaks.json").write_text('{"a": 1}')
    with pytest.raises(DatasetError, match="accepted_leaks.json is no list of messages"):
        check_dataset(Dataset(raw, preprocessed, dataset_json(raw)), 1)


@pytest.mark.parametrize("part", ["imagesTr", "imagesTs"])
def test_a_name_of_other_bytes_is_named_and_aborts_nothing(raw, preprocessed, part):
    first = min((raw / part).iterdir())
    shutil.copy(first, raw / part / os.fsdecode(b"M\xfcller_0000.nii.gz"))
    if part == "imagesTr":
        shutil.copy(raw / "labelsTr" / "case0.nii.gz", raw / "labelsTr" / os.fsdecode(b"M\xfcller.nii.gz"))
    findings = check_dataset(Dataset(raw, preprocessed, dataset_json(raw)), 1)
    lines = findings.bad if part == "imagesTr" else findings.warnings
    names = ["ller_0000.nii.gz", "ller.nii.gz"][: 2 if part == "imagesTr" else 1]
    for line, name in zip(lines, names, strict=True):
        assert name in line and "is not valid Unicode" in line and "ename it" in line
    with pytest.raises(BadScan, match="is not valid Unicode"):
        read_scan([raw / part / os.fsdecode(b"M\xfcller_0000.nii.gz")], SimpleITKIO(), dataset_json(raw))


def test_what_is_not_used_and_what_is_in_no_fold_is_said_first(raw, preprocessed, capsys):
    (raw / "imagesUn" / "more.nrrd").touch()
    (raw / "imagesTs" / "test1_0000.nii.gz").write_bytes(b"no image")
    preprocessed.mkdir(parents=True, exist_ok=True)
    (preprocessed / "splits_final.json").write_text('[{"train": ["case0"], "val": ["case2"]}]')
    main(["check", "-d", "901", "-np", "1"])
    lines = capsys.readouterr().err.splitlines()
    for line, said in zip(lines, ("in no fold", "more.nrrd", "test1_0000.nii.gz cannot be read"), strict=False):
        assert said in line
    (preprocessed / "splits_final.json").write_text('[{"train": ["case0"], "val": ["Case2"]}]')
    with pytest.raises(SystemExit):
        main(["check", "-d", "901", "-np", "1"])
    assert "'Case2' (nearest: 'case2')" in capsys.readouterr().err


def test_other_plans_than_the_default_cost_no_splits(raw, preprocessed):
    with pytest.raises(SystemExit):
        main(["preprocess", "-d", "901", "-c", "3d_fullres"])
    assert (preprocessed / "splits_final.json").exists()


def test_the_preprocessed_folder_alone_is_enough(raw, preprocessed):
    save_again(raw / "imagesTs" / "test1_0000.nii.gz", raw / "imagesUn" / "other_0000.nii.gz")
    look(raw, preprocessed)
    findings = check_dataset(Dataset(None, preprocessed, dataset_json(raw)), 1)
    assert "unlabeled/other" in findings.leaks[0]
    (preprocessed / "content.json").unlink()
    findings = check_dataset(Dataset(None, preprocessed, dataset_json(raw)), 1)
    assert findings.leaks == [] and "never checked" in findings.warnings[0]


def test_other_channels_than_what_was_seen_are_a_line_without_the_raw_scans_too(raw, preprocessed):
    look(raw, preprocessed)
    two = {**dataset_json(raw), "channel_names": {"0": "MR0", "1": "MR1"}}
    (line,) = check_dataset(Dataset(None, preprocessed, two), 1).bad
    assert line.startswith("8 scans have another number of channels, 1, than dataset.json names, 2 (MR0, MR1)")


def test_bad_scans_are_errors_in_training_and_warnings_among_test_scans(raw, preprocessed):
    for part, case in (("Tr", "case1"), ("Un", "scan1"), ("Ts", "test1")):
        (raw / f"images{part}" / f"{case}_0000.nii.gz").write_bytes(b"no image")
    findings = check_dataset(Dataset(raw, preprocessed, dataset_json(raw)), 1)
    named = [[Path(line.split(" cannot be read")[0]).name for line in f] for f in (findings.bad, findings.warnings)]
    assert named == [["case1_0000.nii.gz", "scan1_0000.nii.gz"], ["test1_0000.nii.gz"]]
    accept_leaks(preprocessed, findings.leaks)
    assert check_dataset(Dataset(raw, preprocessed, dataset_json(raw)), 1).bad, "only leaks can be accepted"


def test_a_labeled_scan_that_is_gone_is_named(raw, preprocessed):
    described = dataset_json(raw)
    described["dataset"] = {"case9": {"images": ["/nowhere/case9.nii.gz"], "label": "/nowhere/label.nii.gz"}}
    findings = check_dataset(Dataset(raw, preprocessed, described), 1)
    assert "/nowhere/case9.nii.gz (case9) does not exist" in findings.bad[0]


def test_a_scan_in_another_orientation_is_recognized(raw, preprocessed):
    image = sitk.ReadImage(str(raw / "imagesTs" / "test0_0000.nii.gz"))
    sitk.WriteImage(sitk.DICOMOrient(image, "RSP"), str(raw / "imagesUn" / "turned_0000.nii.gz"))
    (leak,) = check_dataset(Dataset(raw, preprocessed, dataset_json(raw)), 1).leaks
    assert "imagesTs/test0 = unlabeled/turned" in leak


def test_an_interrupted_look_keeps_what_it_has_seen(raw, preprocessed, monkeypatch):
    original = content_module.run_in_workers

    def interrupted(*arguments):
        for i, done in enumerate(original(*arguments)):
            if i == 3:
                raise KeyboardInterrupt
            yield done

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(content_module, "run_in_workers", interrupted)
        look(raw, preprocessed)
    assert sum(map(len, content_module.read_content(preprocessed).values())) == 3
    content, _ = look(raw, preprocessed)
    assert sum(map(len, content.values())) == 8


def test_a_copied_dataset_needs_no_unlabeled_originals(raw, preprocessed):
    (raw / "imagesUn").rename(raw.parent / "originals")
    entries = {f"s{i}": {"images": [str(raw.parent / "originals" / f"scan{i}_0000.nii.gz")]} for i in range(3)}
    (raw / "unlabeled.json").write_text(json.dumps(entries))
    content, _ = look(raw, preprocessed)
    (raw.parent / "originals").rename(raw.parent / "gone")
    assert look(raw, preprocessed)[0] == content
    (raw / "unlabeled.json").write_text(json.dumps({**entries, "new": {"images": ["/nowhere.nii.gz"]}}))
    seen, problems = look(raw, preprocessed)
    assert seen == content
    assert "'new' names '/nowhere.nii.gz', which does not exist" in problems["unlabeled"][0]


@pytest.mark.real
def test_real_la_list_of_unlabeled_scans_that_holds_labeled_ones():
    """The community's train_16_unlabel.list names 12 of the 16 labeled scans."""
    folder = REAL / "LA" / "2018LA_Seg_Training Set"

    def parts(name: str) -> dict[str, dict]:
        entries = {}
        for scan in (folder / name).read_text().split():
            if (folder / scan).is_dir():
                with h5py.File(folder / scan / "mri_norm2.h5") as file:
                    entries[scan] = describe(file["image"][()][None].astype(np.float32), (1, 1, 1))
        return entries

    content = {"imagesTr": parts("train_16_label.list"), "unlabeled": parts("train_16_unlabel.list")}
    leaks = find_leaks(content, {}, {})
    assert len(leaks) == 12 and all(leak.is_error for leak in leaks)


def test_without_a_reader_the_error_says_so(raw, preprocessed):
    (raw / "scan.xyz").touch()
    (raw / "unlabeled.json").write_text('{"s": {"images": ["scan.xyz"]}}')
    described = {**dataset_json(raw), "dataset": {}}
    with pytest.raises(DatasetError, match="xyz"):
        check_dataset(Dataset(raw, preprocessed, {**described, "file_ending": ".xyz"}), 1)


def test_without_the_raw_scans_there_is_nothing_to_check(raw, preprocessed, capsys):
    preprocessed.mkdir(parents=True, exist_ok=True)
    (raw / "dataset.json").rename(preprocessed / "dataset.json")
    with pytest.raises(SystemExit) as end:
        main(["check", "-d", raw.name])
    assert end.value.code == 2
    assert f"There is no {raw / 'dataset.json'}. Set nnUNet_raw" in capsys.readouterr().err


def test_imagesUnlabeled_is_a_warning_beside_imagesUn_and_stops_in_its_place(raw, preprocessed):
    (raw / "imagesUnlabeled").mkdir()
    findings = check_dataset(Dataset(raw, preprocessed, dataset_json(raw)), 1)
    assert not findings.bad and "Did you mean imagesUn?" in findings.warnings[0]
    (raw / "imagesUnlabeled").rmdir()
    (raw / "imagesUn").rename(raw / "imagesUnlabeled")
    with pytest.raises(DatasetError, match=r"imagesUnlabeled: .*Did you mean imagesUn\?"):
        check_dataset(Dataset(raw, preprocessed, dataset_json(raw)), 1).raise_errors(DATASET)
