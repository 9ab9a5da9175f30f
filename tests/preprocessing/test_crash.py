"""What kills, full disks and vanished ones leave, and that the same command then ends well."""

import json
import multiprocessing
import os
import shutil
import time

import blosc2
import numpy as np
import pytest

from nnunetv2_crossmatch.preprocessing import check, scan, unlabeled
from nnunetv2_crossmatch.preprocessing.content import update_content
from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.preprocessing.manifest import ARRAY_SUFFIXES, Manifest
from nnunetv2_crossmatch.utilities.errors import DatasetError
from nnunetv2_crossmatch.utilities.files import write_json
from tests.conftest import small_files, write_image
from tests.preprocessing.conftest import Place

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """After it nothing more is written."""


CASES = [f"scan{i}" for i in range(4)]


def listed(place: Place) -> list[str]:
    return sorted(json.loads((place.folder / "manifest.json").read_text())["cases"])


def assert_ends_well(place: Place, done: Place) -> None:
    assert place.for_training() == listed(place) == CASES
    assert {f.name for f in place.folder.iterdir()} == {f.name for f in done.folder.iterdir()}
    for file in done.folder.glob("*.b2nd"):
        np.testing.assert_array_equal(blosc2.open(str(place.folder / file.name))[:], blosc2.open(str(file))[:])


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_case_that_was_half_replaced_is_never_taken_for_whole(place, done, renames, monkeypatch):
    """Killed while a changed scan's files replace the old ones; then the old scan comes back, or no scan is there."""
    file = place.scans / "scan1_0000.nii.gz"
    shutil.copy2(file, place.raw / "old")
    write_image(np.random.default_rng(5).normal(size=(20, 24, 24)).astype(np.float32), file)
    replace, write, replaced = os.replace, Manifest.write, []

    def replace_some(source, target):
        if target.name.startswith("scan1"):
            if len(replaced) == renames:
                replaced.append("killed")
                raise Killed
            replaced.append(target)
        replace(source, target)

    with monkeypatch.context() as during, pytest.raises(Killed):
        during.setattr(os, "replace", replace_some)
        during.setattr(scan, "ARRAY_SUFFIXES", (*ARRAY_SUFFIXES, ".pkl"))  # a fourth to be killed before
        during.setattr(Manifest, "write", lambda manifest: None if "killed" in replaced else write(manifest))
        place.preprocess()
    assert (blosc2.open(str(place.folder / "scan1.b2nd")).shape[1] == 20) == (renames > 0)

    with pytest.raises(DatasetError, match="incomplete"):
        place.for_training(raw=False)
    files = {case: {"images": [f"imagesUn/{case}_0000.nii.gz"]} for case in CASES}
    (place.raw / "unlabeled.json").write_text(json.dumps(files))
    file.unlink()
    with pytest.raises(DatasetError, match="'scan1' names .* which does not exist"):
        place.for_training()
    (place.raw / "unlabeled.json").unlink()
    shutil.move(place.raw / "old", file)
    assert_ends_well(place, done)


def test_a_disk_that_is_full_for_arrays_is_named_and_the_scans_are_not_blamed(place, done):
    shutil.rmtree(place.folder)
    with small_files(2000), pytest.raises(OSError, match=f"File too large: '{place.folder}'"):
        place.preprocess()
    assert {f.name for f in place.folder.iterdir()} == {".lock", "manifest.json"} and not listed(place)
    assert_ends_well(place, done)


def test_a_disk_that_is_full_for_the_content_is_named(place):
    dataset_json = json.loads((place.raw / "dataset.json").read_text())
    before = {f.name for f in place.preprocessed.iterdir()}
    file = place.preprocessed / "content.json"
    with small_files(2000), pytest.raises(OSError, match=f"File too large: '{file}'"):
        update_content(Dataset(place.raw, place.preprocessed, dataset_json), 1)
    assert {f.name for f in place.preprocessed.iterdir()} - before == {".content.json.lock"}
    assert update_content(Dataset(place.raw, place.preprocessed, dataset_json), 1)[0]["unlabeled"].keys() == set(CASES)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_done_before_an_interruption_or_a_killed_worker_is_kept(place, done, error, monkeypatch):
    shutil.rmtree(place.folder)
    run_all = unlabeled.run_in_workers

    def run_some(*arguments):
        for number, result in enumerate(run_all(*arguments)):
            if number == 2:
                raise error
            yield result

    with monkeypatch.context() as during, pytest.raises(error):
        during.setattr(unlabeled, "run_in_workers", run_some)
        place.preprocess()
    kept = {f"{case}.b2nd": place.times()[f"{case}.b2nd"] for case in listed(place)}
    assert len(kept) == 2
    assert_ends_well(place, done)
    assert kept.items() <= place.times().items()


def test_a_raw_folder_that_vanishes_blames_no_scan(place, done, monkeypatch):
    shutil.rmtree(place.folder)
    preprocess_scan = unlabeled.preprocess_scan

    def vanish(files, target, *arguments):
        if target.name == "scan2":
            place.scans.rename(place.raw / "away")
        return preprocess_scan(files, target, *arguments)

    with monkeypatch.context() as during, pytest.raises(FileNotFoundError, match="scan2_0000.nii.gz"):
        during.setattr(unlabeled, "preprocess_scan", vanish)
        place.preprocess()
    assert listed(place) == ["scan0", "scan1"]
    (place.raw / "away").rename(place.scans)
    assert_ends_well(place, done)


def test_leaks_accepted_by_two_processes_at_once_are_all_accepted(place, monkeypatch):
    def write_slowly(*arguments):
        time.sleep(0.3)
        write_json(*arguments)

    monkeypatch.setattr(check, "write_json", write_slowly)
    leaks = ["first", "second"]
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=check.accept_leaks, args=(place.preprocessed, [leak])) for leak in leaks]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert json.loads((place.preprocessed / check.ACCEPTED).read_text()) == leaks
