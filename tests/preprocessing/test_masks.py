"""What check says of masks and of scans that do not say how large their voxels are, on made-up datasets."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunetv2_crossmatch.preprocessing import content as content_module
from nnunetv2_crossmatch.preprocessing.check import Findings, check_dataset
from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.conftest import DATASET, make_raw_dataset, use_folders, write_image
from tests.preprocessing.bad_scans import nifti


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    use_folders(tmp_path, monkeypatch.setenv)
    make_raw_dataset(tmp_path / "raw" / DATASET, labeled=3, unlabeled=2, test=2)
    return tmp_path / "raw" / DATASET


@pytest.fixture
def tiffs(tmp_path, monkeypatch) -> Path:
    """3D TIFFs of 0.7 x 0.5 x 0.5, the unlabeled ones listed by names of their own."""
    use_folders(tmp_path, monkeypatch.setenv)
    folder = tmp_path / "raw" / DATASET
    for name in ("imagesTr", "labelsTr", "scope"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        mask = np.zeros((9, 10, 11), np.uint8)
        mask[3:6, 3:6, 3:6] = 1
        for stem, array, shown in (
            (f"imagesTr/cell{i}", rng.normal(size=mask.shape).astype(np.float32), "_0000"),
            (f"labelsTr/cell{i}", mask, ""),
            (f"scope/embryo_{i}", rng.normal(size=mask.shape).astype(np.float32), ""),
        ):
            tifffile.imwrite(folder / f"{stem}{shown}.tif", array)
            (folder / f"{stem}.json").write_text('{"spacing": [0.7, 0.5, 0.5]}')
    (folder / "unlabeled.json").write_text(
        json.dumps({f"e{i}": {"images": [f"scope/embryo_{i}.tif"]} for i in range(3)})
    )
    described = {"channel_names": {"0": "fluo"}, "labels": {"background": 0, "cell": 1}, "file_ending": ".tif"}
    (folder / "dataset.json").write_text(json.dumps({**described, "numTraining": 3}))
    return folder


def described(raw: Path) -> dict:
    return json.loads((raw / "dataset.json").read_text())


def look(raw: Path) -> Findings:
    return check_dataset(Dataset(raw, raw.parents[1] / "preprocessed" / DATASET, described(raw)), 1)


def change(raw: Path, **entries) -> None:
    (raw / "dataset.json").write_text(json.dumps({**described(raw), **entries}))


def save(file: Path, array: np.ndarray | None = None, spacing=(1, 1, 1), origin=(0, 0, 0), turn=(1, 1, 1)) -> None:
    """A mask or scan again, with other voxels or another header."""
    image = sitk.GetImageFromArray(sitk.GetArrayFromImage(sitk.ReadImage(str(file))) if array is None else array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(np.diag(turn).astype(float).ravel().tolist())
    sitk.WriteImage(image, str(file))


def voxels(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_a_right_dataset_gives_no_word(raw):
    findings = look(raw)
    assert (findings.bad, findings.leaks, findings.warnings) == ([], [], [])


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ({"spacing": (0.8, 1, 1)}, "spacing: case0 (1 x 1 x 0.8 mm, its scan 1 x 1 x 1)"),
        ({"spacing": (1.00002, 1, 1)}, "spacing: case0 (1 x 1 x 1.00002 mm, its scan 1 x 1 x 1)"),
        ({"spacing": (1.000005, 1, 1)}, None),
        ({"origin": (0, 0, 0.2)}, "origin: case0"),
        ({"origin": (0, 0, 0.05)}, None),
        ({"turn": (-1, 1, 1)}, "orientation: case0"),
    ],
)
def test_another_header_than_the_scans_is_a_warning(raw, header, what):
    save(raw / "labelsTr" / "case0.nii.gz", **header)
    findings = look(raw)
    assert findings.bad == []
    if what is None:
        assert findings.warnings == []
    else:
        (warning,) = findings.warnings
        kind, _, named = what.partition(": ")
        assert warning.startswith(f"1 of 3 masks in labelsTr have another {kind} than their scan: {named}. Training")


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
def test_a_mask_whose_header_has_no_spacing_is_at_most_a_warning(raw, reader):
    change(raw, overwrite_image_reader_writer=reader)
    file = raw / "labelsTr" / "case0.nii.gz"
    nifti(voxels(file), pixdim=(1, 0, 0, 0))(file)
    findings = look(raw)
    assert findings.bad == [], "nnU-Net takes the scan's"
    assert all(line.startswith("1 of 3 masks in labelsTr have another ") for line in findings.warnings)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_mask_with_values_that_are_no_numbers_is_one_error(tiffs, value):
    file = tiffs / "labelsTr" / "cell0.tif"
    mask = tifffile.imread(file).astype(np.float32)
    mask[0, 0, 0] = value
    tifffile.imwrite(file, mask)
    findings = look(tiffs)
    assert findings.bad == [f"{file} contains NaN or infinite values. Repair it or remove the case."]
    assert len(findings.content["imagesTr"]) == 2, "the others were looked at"


def test_masks_that_cannot_be_right_are_errors_a_line_for_each_kind(raw):
    masks = [raw / "labelsTr" / f"case{i}.nii.gz" for i in range(3)]
    save(masks[0], voxels(masks[0])[1:])
    save(masks[1], voxels(masks[1]) * np.float32(0.99999994))
    save(masks[2], voxels(masks[2]) + 5)
    size, odd, foreign = look(raw).bad
    assert size.startswith("1 of 3 masks in labelsTr have another size (z, y, x) than their scan: case0 (15x24x24, its")
    assert odd.startswith("1 of 3 masks in labelsTr have values that are no integers: case1 (0.99999994")
    assert foreign.startswith("1 of 3 masks in labelsTr have values that dataset.json does not name: case2 (5, 6, 7).")
    assert "It has background 0, shell 1, core 2." in foreign
    masks[2].unlink()
    assert "labelsTr: case2. Supply it" in look(raw).bad[0]
    masks[2].write_bytes(b"no mask")
    assert any("case2.nii.gz cannot be read" in line for line in look(raw).bad)


def test_float_masks_with_integers_are_right(raw):
    for file in (raw / "labelsTr").iterdir():
        save(file, voxels(file).astype(np.float32))
    findings = look(raw)
    assert findings.bad == findings.warnings == []


def test_empty_masks_and_classes_that_no_labeled_scan_has(raw):
    save(raw / "labelsTr" / "case1.nii.gz", 0 * voxels(raw / "labelsTr" / "case1.nii.gz"))
    assert look(raw).warnings == [
        "1 of 3 masks in labelsTr are empty: case1. Right if these scans show none of it.",
    ]
    change(raw, labels={"background": 0, "shell": 1, "core": 2, "cyst": 3, "rim": 4})
    absent = look(raw).warnings[1]
    assert absent.startswith("No labeled scan has cyst, rim. A class without an example")
    regions = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    change(raw, labels=regions, regions_class_order=[1, 2])
    assert len(look(raw).warnings) == 1, "the ignore label need not be there"


def test_masks_of_test_scans_are_warnings(raw):
    save(raw / "labelsTs" / "test1.nii.gz", voxels(raw / "labelsTs" / "test1.nii.gz") + 7)
    findings = look(raw)
    assert findings.bad == [] and "1 of 2 masks in labelsTs have values" in findings.warnings[0]


def test_a_corrected_mask_is_looked_at_again_and_nothing_else(raw, monkeypatch):
    look(raw)
    read: list = []
    original = content_module.run_in_workers
    monkeypatch.setattr(
        content_module, "run_in_workers", lambda f, jobs, *args: (read.extend(jobs), original(f, jobs, *args))[1]
    )
    look(raw)
    assert read == []
    save(raw / "labelsTr" / "case2.nii.gz", spacing=(2, 2, 2))
    assert "case2" in look(raw).warnings[0] and read == [("imagesTr", "case2")]


def test_what_changes_in_dataset_json_after_a_check_is_one_line(raw):
    look(raw)
    before = described(raw)
    change(raw, channel_names={"0": "MR0", "1": "CT"})
    findings = look(raw)
    assert findings.warnings == [] and findings.bad == [
        "7 scans have another number of channels, 1, than dataset.json names, 2 (MR0, CT): imagesTr/case0, "
        "imagesTr/case1, imagesTr/case2 and 4 more. Supply the same ones or correct channel_names."
    ]
    (raw / "dataset.json").write_text(json.dumps(before))
    change(raw, file_ending=".nrrd")
    with pytest.raises(DatasetError, match=r"imagesTr has no scan that ends in .nrrd, the file_ending of dataset.json"):
        look(raw)
    (raw / "dataset.json").write_text(json.dumps(before))
    change(raw, labels={"background": 0, "shell": 1})
    (line,) = look(raw).bad
    assert line.startswith("3 of 3 masks in labelsTr have values that dataset.json does not name: case0 (2), case1 (2)")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channel_names", {"0": "MR0", "1": "new"}),
        ("labels", {"background": 0, "new": 1}),
        ("file_ending", ".nii"),
        ("regions_class_order", [2, 1]),
    ],
)
def test_what_changes_in_dataset_json_after_the_planning_is_one_line(raw, key, value):
    planned = raw.parents[1] / "preprocessed" / DATASET / "dataset.json"
    planned.parent.mkdir()
    planned.write_text((raw / "dataset.json").read_text())
    change(raw, numTraining=99, description="new")
    assert look(raw).bad == []
    change(raw, **{key: value})
    said = {"channel_names": "number of channels"}.get(key, key)
    with pytest.raises(
        DatasetError, match=rf"dataset.json has changed since .* \({said}: .*, now .*plan again: nnUNet"
    ):
        look(raw)


def test_other_names_after_the_planning_do_no_harm(raw):
    planned = raw.parents[1] / "preprocessed" / DATASET / "dataset.json"
    planned.parent.mkdir()
    change(raw, labels={"background": 0, "shell": 1, "core": 2, "ignore": 3})
    planned.write_text((raw / "dataset.json").read_text())
    change(raw, labels={"background": 0, "kernel": 2, "rim": 1, "ignore": 3}, channel_names={"0": "T1"})
    assert look(raw).bad == []
    change(raw, labels={"background": 0, "shell": 1, "core": 2, "unsure": 3})
    with pytest.raises(DatasetError, match=r"\(ignore: 3, now None\)"):
        look(raw)


def test_another_reader_makes_the_figures_again(raw, monkeypatch):
    look(raw)
    monkeypatch.setattr(content_module, "describe", lambda *_: pytest.fail("nothing has changed"))
    look(raw)
    monkeypatch.undo()
    monkeypatch.setenv("nnUNet_preprocessed", str(raw.parents[1] / "preprocessed"))
    change(raw, overwrite_image_reader_writer="NibabelIO")
    look(raw)
    made_with = json.loads((raw.parents[1] / "preprocessed" / DATASET / "content.json").read_text())["made_with"]
    assert made_with["reader"] == "NibabelIO" and set(made_with["versions"]) == {
        "nnunetv2",
        "nnunetv2_crossmatch",
        "torch",
    }


def test_the_spacing_file_of_a_listed_tiff_counts_and_its_correction_is_noticed(tiffs):
    findings = look(tiffs)
    assert findings.bad == findings.warnings == []
    assert findings.content["unlabeled"]["e0"]["spacing"] == [0.7, 0.5, 0.5]
    (tiffs / "scope" / "embryo_0.json").write_text('{"spacing": [0.9, 0.5, 0.5]}')
    (tiffs / "labelsTr" / "cell1.json").write_text('{"spacing": [0.8, 0.5, 0.5]}')
    findings = look(tiffs)
    assert findings.content["unlabeled"]["e0"]["spacing"] == [0.9, 0.5, 0.5]
    assert "cell1 (0.8 x 0.5 x 0.5 mm, its scan 0.7 x 0.5 x 0.5)" in findings.warnings[0]
    (tiffs / "labelsTr" / "cell1.json").unlink()  # as nnU-Net's own copies: nothing is said
    assert look(tiffs).warnings == []


def test_tiffs_without_a_spacing_file_among_others_that_have_one(tiffs):
    for i in range(2):
        (tiffs / "scope" / f"embryo_{i}.json").unlink()
    (line,) = look(tiffs).bad
    assert line.startswith(
        "2 of 3 TIFFs in unlabeled have no spacing file: e0, e1. nnU-Net would take 1 x 1 x 1; others"
    )
    assert "have 0.7 x 0.5 x 0.5." in line
    (tiffs / "imagesTr" / "cell0.json").unlink()
    findings = look(tiffs)
    assert findings.bad == [], "the labeled ones are no better"
    lines = [line.split(" have no spacing file")[0] for line in findings.warnings if "spacing file" in line]
    assert lines == ["1 of 3 TIFFs in imagesTr", "2 of 3 TIFFs in unlabeled"]
    for file in tiffs.rglob("c*.json"):
        file.unlink()
    (tiffs / "scope" / "embryo_2.json").unlink()
    assert look(tiffs).bad == [], "where none has one nothing is lost"


def test_2d_images_among_3d_scans_are_refused(raw):
    write_image(
        np.random.default_rng(0).normal(size=(24, 24)).astype(np.float32), raw / "imagesUn" / "flat_0000.nii.gz"
    )
    write_image(
        np.random.default_rng(1).normal(size=(24, 24)).astype(np.float32), raw / "imagesTs" / "flat2_0000.nii.gz"
    )
    findings = look(raw)
    (line,) = findings.bad
    assert line.startswith("1 of 3 scans in unlabeled are 2D images among 3D scans: flat. They have no third spacing")
    assert any("1 of 3 scans in imagesTs are 2D images among 3D scans: flat2" in line for line in findings.warnings)


def test_one_slice_of_some_thickness_does_not_make_2d_images_wrong(tmp_path, monkeypatch):
    use_folders(tmp_path, monkeypatch.setenv)
    raw = tmp_path / "raw" / DATASET
    make_raw_dataset(raw, labeled=4, unlabeled=2)
    for file in raw.glob("*/*.nii.gz"):
        if "case0" not in file.name:
            write_image(voxels(file)[8], file)
        else:
            save(file, voxels(file)[8:9], spacing=(1, 1, 5))
    assert look(raw).bad == [], "nnU-Net trains 2d with them"


def test_scans_whose_spacing_was_lost_are_named_unless_it_is_everyones(raw):
    assert look(raw).warnings == []  # all of them are 1 x 1 x 1 at 0
    for part in ("Tr", "Ts"):
        for file in (*(raw / f"images{part}").iterdir(), *(raw / f"labels{part}").iterdir()):
            save(file, spacing=(0.7, 0.7, 2.5), origin=(-100, 0, 0))
    lost = [line for line in look(raw).warnings if "bare array" in line]
    assert len(lost) == 1 and lost[0].startswith("2 of 2 scans in unlabeled have the header of a bare array")
    assert "Others have 2.5 x 0.7 x 0.7 mm (z, y, x): the spacing was probably lost" in lost[0]


@pytest.mark.parametrize(
    ("labels", "order", "complaint"),
    [
        ({"background": 0, "front": 1, "back": 2}, None, None),
        ({"background": 0, "front": 1, "back": 4}, None, "the values 0, 1, 4, but nnU-Net wants 0 to 2 without a gap"),
        ({"background": 0, "front": 1, "ignore": 2}, None, None),
        ({"background": 0, "ignore": 1, "front": 2}, None, "ignore is 1, but nnU-Net wants it to be the highest"),
        ({"background": 0, "whole": [1, 2], "back": 2}, [1, 2], None),
        (
            {"background": 0, "whole": [1, 2], "back": 2},
            None,
            "regions_class_order needs one value for each of whole, back: .* is missing",
        ),
        (
            {"background": 0, "whole": [1, 2], "back": 2, "ignore": 3},
            [1, 2, 3],
            "each of whole, back: .* It is .1, 2, 3.",
        ),
    ],
)
def test_labels_that_nnunet_cannot_train_with_are_an_error(raw, labels, order, complaint):
    change(raw, labels=labels, **({} if order is None else {"regions_class_order": order}))
    if complaint is None:
        look(raw)
        return
    with pytest.raises(DatasetError, match=complaint):
        look(raw)


def test_masks_of_no_scan_are_counted(raw):
    assert not [line for line in look(raw).warnings if "no scan" in line]
    (raw / "labelsTr" / "case9.nii.gz").write_bytes((raw / "labelsTr" / "case0.nii.gz").read_bytes())
    said = [line for line in look(raw).warnings if "no scan" in line]
    assert said == ["1 of 4 masks in labelsTr have no scan in imagesTr, not used: case9."]
    (raw / "labelsTr" / "case0.nii.gz").rename(raw / "labelsTr" / "case0_0000.nii.gz")
    findings = look(raw)
    assert any("case0_0000, case9. A mask has no channel number" in line for line in findings.warnings)
    assert any("1 of 3 labeled scans have no mask in labelsTr: case0." in line for line in findings.bad)


def test_fewer_labeled_scans_than_numtraining_are_said(raw):
    for said, warned in ((3, False), (2, False), (400, True), ("400", False)):
        change(raw, numTraining=said)
        assert any("numTraining" in line for line in look(raw).warnings) == warned


def test_a_reader_that_there_is_not_is_said(raw):
    for name, warned in (("SimpleITKIO", False), ("None", False), ("SimpelITKIO", True)):
        change(raw, overwrite_image_reader_writer=name)
        assert any(f"no reader {name!r}" in line for line in look(raw).warnings) == warned


def test_a_mask_of_unknown_values_is_not_called_empty(raw):
    file = raw / "labelsTr" / "case0.nii.gz"
    mask = sitk.ReadImage(str(file))
    sitk.WriteImage(mask * 100, str(file))
    findings = look(raw)
    assert any("values that dataset.json does not name: case0 (100" in line for line in findings.bad)
    assert not any("are empty" in line for line in findings.warnings)
    sitk.WriteImage(mask * 0, str(file))
    assert any("1 of 3 masks in labelsTr are empty: case0." in line for line in look(raw).warnings)


def test_a_mask_in_colors_is_named_with_what_to_save_instead(raw):
    file = raw / "labelsTr" / "case0.nii.gz"
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([mask] * 3), isVector=False), str(file))  # 4D: read as channels
    (line,) = look(raw).bad
    assert line == f"{file} has 3 channels. A mask has one: save the labels 0, 1, 2, ... as gray values."
