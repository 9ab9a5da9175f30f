"""Folders end to end, through nnU-Net's own readers."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from medpy.metric import binary
from skimage import io

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.commands.evaluate import of_other_data
from nnunetv2_crossmatch.evaluation import evaluate
from nnunetv2_crossmatch.evaluation.evaluate import evaluate_folders
from nnunetv2_crossmatch.nnunet.labels import read_labels
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.conftest import REAL

DATASET = {
    "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
    "regions_class_order": [1, 2],
    "file_ending": ".nii.gz",
}


def write(file: Path, mask: np.ndarray, spacing=(3.0, 0.5, 0.7)) -> None:
    file.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(file))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three cases of a shell and its core; in the last one the core was not found."""
    rng = np.random.default_rng(0)
    for case in ("a", "b", "c"):
        reference = np.zeros((4, 10, 12), dtype=int)
        reference[:, 2:9, 3:10], reference[1:3, 4:7, 5:8] = 1, 2
        prediction = np.roll(reference, rng.integers(-2, 3), axis=2)
        if case == "c":
            prediction[prediction == 2] = 1
        write(tmp_path / "labelsTs" / f"{case}.nii.gz", reference)
        write(tmp_path / "predicted" / f"{case}.nii.gz", prediction)
    (tmp_path / "predicted" / "dataset.json").write_text(json.dumps(DATASET))
    return tmp_path / "labelsTs", tmp_path / "predicted"


def test_a_folder_with_regions_and_an_extra_prediction(folders):
    reference, prediction = folders
    shutil.copy(prediction / "a.nii.gz", prediction / "z.nii.gz")
    result = evaluate_folders(reference, prediction, num_processes=2)
    assert (result.cases, result.classes, result.extra) == (["a", "b", "c"], ["whole", "core"], ["z"])
    assert result.missed.tolist() == [[False, False], [False, False], [False, True]]
    for i, case in enumerate(result.cases):
        r, p = (sitk.GetArrayFromImage(sitk.ReadImage(str(f / f"{case}.nii.gz"))) > 0 for f in (reference, prediction))
        spacing = (3.0, 0.5, 0.7)
        assert result.values[i, 0].tolist() == pytest.approx(
            [binary.dc(p, r), binary.jc(p, r), binary.hd95(p, r), binary.asd(p, r),
             binary.hd95(p, r, spacing), binary.asd(p, r, spacing)]
        )  # fmt: skip
    voxels, mm = (4**2 + 10**2 + 12**2) ** 0.5, (12**2 + 5**2 + 8.4**2) ** 0.5
    assert result.values[2, 1].tolist() == pytest.approx([0, 0, voxels, voxels, mm, mm])


def test_another_dataset_json_and_the_reader_of_the_plans(folders, tmp_path):
    reference, prediction = folders
    (prediction / "dataset.json").unlink()
    with pytest.raises(DatasetError, match=r"predicted/dataset.json is missing"):
        evaluate_folders(reference, prediction)
    labels = {"labels": {"background": 0, "rim": 1, "core": 2}, "file_ending": ".nii.gz"}
    (tmp_path / "own.json").write_text(json.dumps(labels))
    assert evaluate_folders(reference, prediction, tmp_path / "own.json", 1).classes == ["rim", "core"]
    (prediction / "plans.json").write_text(json.dumps({"image_reader_writer": "NoSuchReader"}))
    with pytest.raises(RuntimeError, match="NoSuchReader"):
        evaluate_folders(reference, prediction, tmp_path / "own.json", 1)


def test_missing_predictions_and_empty_folders_are_named(folders, tmp_path):
    reference, prediction = folders
    for case in ("a", "c"):
        (prediction / f"{case}.nii.gz").unlink()
    with pytest.raises(DatasetError) as e:
        evaluate_folders(reference, prediction)
    (line,) = e.value.problems
    assert line == f"{prediction} has no prediction for 2 of 3 masks in {reference}: a, c."
    (prediction / "b.nii.gz").rename(prediction / "a_0000.nii.gz")
    with pytest.raises(DatasetError, match=r"for 3 of 3 masks .* without a channel number: rename them\."):
        evaluate_folders(reference, prediction)
    with pytest.raises(DatasetError, match=r"nowhere holds no .nii.gz file"):
        evaluate_folders(tmp_path / "nowhere", prediction)
    (prediction / "a_0000.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"predicted holds no .nii.gz file"):
        evaluate_folders(reference, prediction)


def test_every_bad_mask_is_named_at_once(folders):
    reference, prediction = folders
    write(prediction / "a.nii.gz", np.zeros((4, 10, 11)))
    write(prediction / "b.nii.gz", np.full((4, 10, 12), 7))
    with pytest.raises(DatasetError) as e:
        evaluate_folders(reference, prediction, num_processes=1)
    first, second = str(e.value).split("\n")[1:]
    assert str(prediction / "a.nii.gz") in first and str(reference / "a.nii.gz") in first and "4x10x11" in first
    assert str(prediction / "b.nii.gz") in second and "[7.0]" in second


@pytest.mark.parametrize("number", ["_0000", ""])
def test_the_spacing_of_the_scans_in_imagests_counts_and_other_headers_are_warned_of(folders, capsys, number):
    reference, prediction = folders
    expected = evaluate_folders(reference, prediction, num_processes=1).values
    for file in sorted(reference.iterdir()):
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        write(reference.with_name("imagesTs") / file.name.replace(".nii.gz", f"{number}.nii.gz"), mask)
        write(file, mask, (1.0, 1.0, 1.0))
    own = sitk.GetArrayFromImage(sitk.ReadImage(str(prediction / "b.nii.gz")))
    write(prediction / "b.nii.gz", own, (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(evaluate_folders(reference, prediction, num_processes=1).values, expected)
    main(["evaluate", str(reference), str(prediction), "-np", "1"])
    warning, of_prediction = capsys.readouterr().err.splitlines()
    assert f"warning: 1 masks in {prediction} have an odd header" in of_prediction
    assert f"warning: 3 masks in {reference} have an odd header: a.nii.gz" in warning


@pytest.mark.parametrize(
    ("place", "reference", "prediction"), [("labelsTs", ".", "../predicted"), ("predicted", "../labelsTs", ".")]
)
def test_the_folder_in_which_one_stands_has_a_name(folders, monkeypatch, place, reference, prediction):
    scans = folders[0].with_name("imagesTs")
    for file in folders[0].iterdir():
        write(scans / file.name, np.zeros((4, 10, 12)), (6, 1, 1.4))
    expected = evaluate_folders(*folders, num_processes=1)
    monkeypatch.chdir(folders[0].with_name(place))
    found = evaluate_folders(Path(reference), Path(prediction), num_processes=1)
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.odd_headers.keys() == expected.odd_headers.keys(), "the scans were found"


def test_the_scans_of_linked_masks_are_beside_the_link(folders, tmp_path):
    reference, prediction = folders
    for file in reference.iterdir():
        write(tmp_path / "imagesTs" / file.name, np.zeros((4, 10, 12)), (6, 1, 1.4))
    reference.rename(tmp_path / "elsewhere")
    reference.symlink_to(tmp_path / "elsewhere")
    assert len(evaluate_folders(reference, prediction, num_processes=1).odd_headers) == 6


def die(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_is_explained(folders, monkeypatch):
    monkeypatch.setattr(evaluate, "measure_case", die)
    with pytest.raises(RuntimeError, match="lack of memory"):
        evaluate_folders(*folders, num_processes=2)


def test_labels_are_read_as_nnunet_reads_them():
    labels = read_labels(DATASET)
    assert labels.classes == {"whole": (1, 2), "core": (2,)}
    assert (labels.known, labels.ignore) == ((0, 1, 2), 3)
    assert read_labels({"labels": {"background": 0, "organ": 1}}).ignore is None


@pytest.mark.real
def test_real_masks_one_patients_against_anothers(tmp_path):
    """Stored as float32, as some of the originals are."""
    by_size: dict[tuple, list[Path]] = {}
    for file in sorted((REAL / "Hippocampus" / "labelsTr").glob("*.nii.gz"))[:60]:
        by_size.setdefault(sitk.ReadImage(str(file)).GetSize(), []).append(file)
    reference, other = next(files for files in by_size.values() if len(files) > 1)[:2]
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / reference.name).symlink_to(reference)
    (tmp_path / "p").mkdir()
    image = sitk.Cast(sitk.ReadImage(str(other)), sitk.sitkFloat32)
    image.CopyInformation(sitk.ReadImage(str(reference)))
    sitk.WriteImage(image, str(tmp_path / "p" / reference.name))
    dataset = {"labels": {"background": 0, "anterior": 1, "posterior": 2}, "file_ending": ".nii.gz"}
    (tmp_path / "p" / "dataset.json").write_text(json.dumps(dataset))

    result = evaluate_folders(tmp_path / "r", tmp_path / "p", num_processes=1)
    a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in (reference, other))
    for i, label in enumerate((1, 2)):
        r, p, spacing = a == label, b == label, (1, 1, 1)
        in_voxels, in_mm = (
            [binary.hd95(p, r), binary.asd(p, r)],
            [binary.hd95(p, r, spacing), binary.asd(p, r, spacing)],
        )
        assert result.values[0, i].tolist() == pytest.approx([binary.dc(p, r), binary.jc(p, r), *in_voxels, *in_mm])
        assert 0 < result.values[0, i, 0] < 1


def test_references_that_are_not_measured_are_named(folders, capsys):
    reference, prediction = folders
    (reference / "other.nii").touch()
    assert "1 not used (other.nii)" in evaluate_folders(reference, prediction, num_processes=1).left_out[0]
    with pytest.raises(DatasetError, match=r"nowhere.nii.gz is missing"):
        evaluate_folders(reference, prediction, num_processes=1, cases=["nowhere"])
    name = os.fsdecode(b"M\xfcller.nii.gz")
    shutil.copy(prediction / "a.nii.gz", prediction / name)
    main(["evaluate", str(reference), str(prediction), "-np", "1"])
    said = capsys.readouterr()
    assert "1 not used (other.nii)" in said.err and r"no reference: M\udcfcller" in said.out
    shutil.copy(reference / "a.nii.gz", reference / name)
    with pytest.raises(DatasetError, match="is not valid Unicode"):
        evaluate_folders(reference, prediction, num_processes=1)


def test_photographs_beside_the_rows_of_a_benchmark(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for case in ("a", "b"):
        for folder in ("labelsTs", "predicted"):
            (tmp_path / folder).mkdir(exist_ok=True)
            io.imsave(
                tmp_path / folder / f"{case}.png", rng.integers(0, 2, (8, 8)).astype(np.uint8), check_contrast=False
            )
    described = {"labels": {"background": 0, "lesion": 1}, "file_ending": ".png"}
    (tmp_path / "predicted" / "dataset.json").write_text(json.dumps(described))
    command = ["evaluate", str(tmp_path / "labelsTs"), str(tmp_path / "predicted"), "-np", "1", "--benchmark"]
    main([*command, "isic-103"])
    said = capsys.readouterr()
    assert said.out.count("95HD [pixels]") == 2 and "[mm]" not in said.out and "[voxels]" not in said.out
    assert "ISIC 2018's own score, Jaccard below 0.65 counting as 0: 0.00 %" in said.out
    assert "warning: --benchmark isic-103: its rows are of 519 cases with lesion; these are 2 with lesion" in said.err
    main([*command, "acdc-3"])
    said = capsys.readouterr()
    assert "40 cases with RV, MYO, LV; these are 2 with lesion" in said.err and "ISIC" not in said.out


def test_a_benchmarks_own_data_is_not_warned_of():
    assert of_other_data("la-8", ["left_atrium"], 20) == []
    assert of_other_data("la-8", ["left_atrium"], 19) and of_other_data("la-8", ["atrium"], 20)
