import json
import os
import shutil
import subprocess
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_json, load_pickle
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.unlabeled import preprocess_unlabeled, unlabeled_cases_for_training
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.conftest import DATASET, write_image


class Place:
    """The dataset's folders and short calls."""

    def __init__(self, base: Path):
        self.raw, self.preprocessed = base / "raw" / DATASET, base / "preprocessed" / DATASET
        self.folder = self.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
        self.scans = self.raw / "imagesUn"

    @property
    def plans(self) -> PlansManager:
        return PlansManager(str(self.preprocessed / "nnUNetPlansSmall.json"))

    def preprocess(self, num_processes: int = 1) -> list[str]:
        return preprocess_unlabeled(self.planned(), num_processes)

    def for_training(self, raw=True) -> list[str]:
        return unlabeled_cases_for_training(self.planned(raw), 1)

    def planned(self, raw=True) -> Planned:
        dataset_json = load_json(str(self.preprocessed / "dataset.json"))
        return Planned(Dataset(self.raw if raw else None, self.preprocessed, dataset_json), self.plans, "3d_fullres")

    def times(self) -> dict[str, int]:
        return {f.name: f.stat().st_mtime_ns for f in self.folder.glob("*.b2nd")}


@pytest.fixture(scope="module")
def done(planned, tmp_path_factory) -> Path:
    """A dataset whose unlabeled cases are preprocessed, to copy from."""
    base = tmp_path_factory.mktemp("done") / "nnunet"
    shutil.copytree(planned, base)
    Place(base).preprocess()
    return base


@pytest.fixture
def place(done, tmp_path) -> Place:
    shutil.copytree(done, tmp_path / "nnunet")  # copies keep their times
    return Place(tmp_path / "nnunet")


def test_arrays_are_what_nnunets_preprocessor_makes(place):
    configuration = place.plans.get_configuration("3d_fullres")
    dataset_json = load_json(str(place.raw / "dataset.json"))
    for i in range(4):
        data, seg, _ = configuration.preprocessor_class(verbose=False).run_case(
            [str(place.scans / f"scan{i}_0000.nii.gz")], None, place.plans, configuration, dataset_json
        )
        np.testing.assert_array_equal(blosc2.open(str(place.folder / f"scan{i}.b2nd"))[:], data)
        np.testing.assert_array_equal(blosc2.open(str(place.folder / f"scan{i}_seg.b2nd"))[:], seg)
        assert "class_locations" not in load_pickle(str(place.folder / f"scan{i}.pkl"))


def test_a_second_run_does_nothing_and_needs_no_write_access(place):
    before = place.times()
    (place.folder / ".lock").unlink()
    assert place.preprocess() == [f"scan{i}" for i in range(4)]
    assert place.times() == before
    assert not (place.folder / ".lock").exists()


def test_the_same_voxels_with_another_time_are_not_preprocessed_again(place):
    before = place.times()
    for file in place.scans.iterdir():
        os.utime(file)
    place.preprocess()
    assert place.times() == before
    (place.folder / ".lock").unlink()
    place.preprocess()  # the new times are known now
    assert not (place.folder / ".lock").exists()


def test_a_corrected_spacing_is_noticed(place):
    file = place.scans / "scan1_0000.nii.gz"
    image = sitk.ReadImage(str(file))
    image.SetSpacing((2.0, 2.0, 2.0))
    sitk.WriteImage(image, str(file))
    place.preprocess()
    assert blosc2.open(str(place.folder / "scan1.b2nd")).shape == (1, 32, 48, 48)


def test_only_what_is_missing_changed_or_unlisted_is_touched(place):
    before = place.times()
    (place.folder / "scan0.pkl").unlink()
    write_image(
        np.random.default_rng(5).normal(size=(16, 24, 24)).astype(np.float32), place.scans / "scan1_0000.nii.gz"
    )
    (place.scans / "scan2_0000.nii.gz").unlink()
    write_image(np.random.default_rng(6).normal(size=(16, 24, 24)).astype(np.float32), place.scans / "new_0000.nii.gz")
    assert place.preprocess() == ["new", "scan0", "scan1", "scan3"]
    after = place.times()
    assert after["scan3.b2nd"] == before["scan3.b2nd"]
    assert after["scan0.b2nd"] != before["scan0.b2nd"] and after["scan1.b2nd"] != before["scan1.b2nd"]
    assert "scan2.b2nd" not in after and "new.b2nd" in after
    assert sorted(json.loads((place.folder / "manifest.json").read_text())["cases"]) == [
        "new",
        "scan0",
        "scan1",
        "scan3",
    ]


def test_other_plans_are_an_error_for_training_and_work_for_preprocess(place):
    file = place.preprocessed / "nnUNetPlansSmall.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    file.write_text(json.dumps(plans))
    with pytest.raises(DatasetError, match="preprocessed with other plans .*nnUNetv2_crossmatch preprocess -d"):
        place.for_training()
    place.preprocess()
    assert place.for_training() == [f"scan{i}" for i in range(4)]
    assert blosc2.open(str(place.folder / "scan0.b2nd")).shape == (1, 8, 12, 12)


def test_another_network_or_patch_size_makes_nothing_stale(place):
    file = place.preprocessed / "nnUNetPlansSmall.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"].update(patch_size=[8, 8, 8], batch_size=7)
    file.write_text(json.dumps(plans))
    before = place.times()
    place.for_training()
    assert place.times() == before


def test_the_preprocessed_folder_alone_is_enough(place):
    shutil.rmtree(place.raw)
    assert place.for_training(raw=False) == [f"scan{i}" for i in range(4)]


def test_an_incomplete_folder_without_the_raw_scans_is_an_error(place):
    (place.folder / "scan2_seg.b2nd").unlink()
    with pytest.raises(DatasetError, match="is incomplete"):
        place.for_training(raw=False)
    place.preprocess()
    place.for_training(raw=False)
    break_scan(place.scans / "scan1_0000.nii.gz", "nan")
    with pytest.raises(DatasetError, match="NaN"):
        place.preprocess()
    with pytest.raises(DatasetError, match="is incomplete"):
        place.for_training(raw=False)


def test_training_does_it_by_itself(place):
    shutil.rmtree(place.folder)
    assert place.for_training() == [f"scan{i}" for i in range(4)]
    assert len(place.times()) == 8


def test_no_unlabeled_scans_anywhere(place):
    shutil.rmtree(place.folder)
    shutil.rmtree(place.scans)
    with pytest.raises(DatasetError, match="has no unlabeled scans. Put them in .*imagesUn"):
        place.for_training()


def break_scan(file: Path, how: str) -> None:
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:2000])
    elif how == "unreadable":
        file.write_bytes(b"this is no scan")
    elif how == "nan":
        image[3, 3, 3] = np.nan
        write_image(image, file)
    elif how == "constant":
        write_image(np.full_like(image, 7), file)
    elif how == "two channels":
        shutil.copy(file, str(file).replace("_0000", "_0001"))


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("truncated", "cannot be"),
        ("unreadable", "cannot be"),
        ("nan", "contains NaN or infinite"),
        ("constant", r"is constant \(7 everywhere\)"),
        ("two channels", "2 channels, but the dataset has 1"),
    ],
)
def test_a_bad_scan_is_named_and_the_others_are_done(place, how, complaint):
    shutil.rmtree(place.folder)
    break_scan(place.scans / "scan1_0000.nii.gz", how)
    with pytest.raises(DatasetError, match=complaint) as error:
        place.for_training()
    assert "scan1_0000.nii.gz" in str(error.value) and "remove the case" in str(error.value)
    assert sorted(json.loads((place.folder / "manifest.json").read_text())["cases"]) == ["scan0", "scan2", "scan3"]
    assert not list(place.folder.glob("scan1*")) and not list(place.folder.glob(".incoming*"))


def test_several_bad_scans_are_one_error(place):
    for i, how in enumerate(("truncated", "nan", "constant")):
        break_scan(place.scans / f"scan{i}_0000.nii.gz", how)
    with pytest.raises(DatasetError) as error:
        place.preprocess()
    assert all(f"scan{i}_0000.nii.gz" in str(error.value) for i in range(3))
    assert "scan3" not in str(error.value)


def test_leftovers_of_a_killed_run_are_removed(place):
    (place.folder / ".incoming_dead").mkdir()
    (place.folder / ".incoming_dead" / "half.b2nd").write_text("x")
    (place.folder / "scan0.b2nd").unlink()
    place.preprocess()
    assert not (place.folder / ".incoming_dead").exists()
    assert (place.folder / "scan0.b2nd").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_nothing_half_written(place):
    shutil.rmtree(place.folder)
    for i in range(4):  # noise does not compress: about 1 MB each
        write_image(
            np.random.default_rng(i).normal(size=(48, 72, 72)).astype(np.float32),
            place.scans / f"scan{i}_0000.nii.gz",
        )
    place.folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", place.folder]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(OSError, match="No space left"):
            place.preprocess(num_processes=2)
        listed = json.loads((place.folder / "manifest.json").read_text())["cases"]
        whole = {f.name for case in listed for f in place.folder.glob(f"{case}*")}
        assert {f.name for f in place.folder.iterdir()} - {".lock", "manifest.json"} == whole
        assert 0 < len(listed) < 4 and len(whole) == 3 * len(listed)
    finally:
        subprocess.run(["umount", place.folder], check=True)
