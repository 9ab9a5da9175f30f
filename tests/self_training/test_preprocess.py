import json
import os
import shutil

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import load_json, load_pickle
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.preprocessing.manifest import Manifest
from nnunetv2_crossmatch.preprocessing.unlabeled import preprocess_unlabeled
from nnunetv2_crossmatch.self_training.confidence import with_ignore_label
from nnunetv2_crossmatch.self_training.names import STUDENT, Round
from nnunetv2_crossmatch.self_training.preprocess import preprocess_pseudo_label, pseudo_labels_for_training
from nnunetv2_crossmatch.self_training.record import image_stamp
from nnunetv2_crossmatch.self_training.rounds import leave_out
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.conftest import small_files

CASES = [f"scan{i}" for i in range(4)]


def prepare(place, raw=True, cases=None, validation=None, teacher=None, fold=0, plans=None):
    return pseudo_labels_for_training(
        place.planned(raw, plans),
        fold,
        cases or CASES,
        place.validation() if validation is None else validation,
        teacher,
        num_processes=1,
    )[0]


def times(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("scan*")}


def change(file, edit=lambda array: array):
    """Write the label again, edited."""
    image = sitk.ReadImage(str(file))
    changed = sitk.GetImageFromArray(edit(sitk.GetArrayFromImage(image)))
    if changed.GetSize() == image.GetSize():
        changed.CopyInformation(image)
    sitk.WriteImage(changed, str(file))


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_arrays_and_locations_are_what_nnunets_preprocessor_makes(place, configuration):
    plans = place.plans.plans
    plans["transpose_forward"], plans["transpose_backward"] = [1, 0, 2], [1, 0, 2]
    spacing = [1.3, 0.8] if configuration == "2d" else [1.5, 1.3, 0.8]
    plans["configurations"][configuration].update(spacing=spacing, data_identifier="other")
    manager = PlansManager(plans)
    preprocess_unlabeled(place.planned(plans=manager, configuration=configuration), 1)
    label = place.labels / "fold_0" / "scan0.nii.gz"
    dataset_json = with_ignore_label(load_json(str(place.raw / "dataset.json")))
    target = place.preprocessed / "target"
    target.mkdir()
    images = place.preprocessed / "other_unlabeled"
    preprocess_pseudo_label(label, images, target, "scan0", plans, configuration, dataset_json)

    of_configuration = manager.get_configuration(configuration)
    image = str(place.raw / "imagesUn" / "scan0_0000.nii.gz")
    data, seg, properties = of_configuration.preprocessor_class(verbose=False).run_case(
        [image], str(label), manager, of_configuration, dataset_json
    )
    ours = blosc2.open(str(target / "scan0_seg.b2nd"))[:]
    np.testing.assert_array_equal(ours, seg)
    np.testing.assert_array_equal(blosc2.open(str(images / "scan0.b2nd"))[:], data)
    assert ours.shape != (1, *sitk.GetArrayFromImage(sitk.ReadImage(image)).shape)
    locations = load_pickle(str(target / "scan0.pkl"))["class_locations"]
    assert locations.keys() == properties["class_locations"].keys() == {1, 2, (-1, 0, 1, 2)}
    for key, expected in properties["class_locations"].items():
        np.testing.assert_array_equal(locations[key], expected)


def test_a_zero_background_is_outside_as_in_the_image(place):
    file = place.raw / "imagesUn" / "scan0_0000.nii.gz"
    change(file, lambda image: np.where(np.indices(image.shape).sum(0) < 20, 0, image))
    place.write()
    change(place.labels / "fold_0" / "scan0.nii.gz", np.zeros_like)
    seg = blosc2.open(str(prepare(place) / "scan0_seg.b2nd"))[:]
    mask = blosc2.open(str(place.preprocessed / "nnUNetPlans_3d_fullres_unlabeled" / "scan0_seg.b2nd"))[:]
    np.testing.assert_array_equal(seg, mask)
    assert (seg == -1).any()


def test_only_what_was_corrected_is_made_again(place):
    before = times(prepare(place))
    assert times(prepare(place)) == before
    change(place.labels / "fold_0" / "scan1.nii.gz", lambda label: np.where(label == 3, 2, label))
    folder = prepare(place)
    assert {name for name, time in times(folder).items() if before[name] != time} == {"scan1_seg.b2nd", "scan1.pkl"}
    assert 3 not in blosc2.open(str(folder / "scan1_seg.b2nd"))[:]


def test_labels_of_a_scan_that_changed_are_refused_until_it_is_labeled_again(place):
    prepare(place)
    change(place.raw / "imagesUn" / "scan2_0000.nii.gz", lambda image: image + 1)
    file = str(place.raw / "imagesUn" / "scan3_0000.nii.gz")
    image = sitk.ReadImage(file)
    image.SetSpacing((1.0, 1.0, 1.5))
    sitk.WriteImage(image, file)
    preprocess_unlabeled(place.planned(), 1)
    for raw in (True, False):
        with pytest.raises(DatasetError, match="2 of 4 .* are of scans that have changed since: scan2, scan3"):
            prepare(place, raw=raw)
    assert place.write()[0].predicted == ["scan2", "scan3"]
    prepare(place)


def test_labels_of_two_models_are_refused_but_corrected_ones_may_be_older(place, monkeypatch):
    prepare(place)
    shutil.copy(place.labels / "fold_0" / "scan0.nii.gz", place.labels / "fold_0" / "scan3.nii.gz")
    place.make_model(0, seed=7)
    place.interrupt(monkeypatch, after=1, threshold=0.55)
    with pytest.raises(DatasetError, match="2 of 4 .* another model or threshold than the newest: scan1, scan2") as e:
        prepare(place)
    assert "-tr nnUNetTrainer -chk checkpoint_final.pth --threshold 0.55" in str(e.value)
    prepare(place, cases=["scan0", "scan3"])
    place.write(threshold=0.55)
    prepare(place)
    prepare(place, raw=False)


def test_scans_that_are_left_out_are_not_trained_on_here_or_elsewhere(place):
    prepare(place)
    leave_out(place.labels / "fold_0", ["scan2"])
    for raw in (True, False):
        *_, files = pseudo_labels_for_training(place.planned(raw), 0, CASES, place.validation(), None, 1)
        assert list(files) == ["scan0", "scan1", "scan3"]
    leave_out(place.labels / "fold_0", [])
    prepare(place)
    assert list(pseudo_labels_for_training(place.planned(False), 0, CASES, place.validation(), None, 1)[2]) == CASES


def test_labels_of_rounds_are_no_second_teachers(place):
    own = place.labels.with_name(place.labels.name.replace("nnUNetTrainer", Round(STUDENT, 1, "nnUNetTrainer").trainer))
    shutil.copytree(place.labels, own)
    assert prepare(place).parent.name == place.labels.name
    assert prepare(place, teacher=own.name.split("__")[0]).parent.name == own.name


def test_killed_between_record_and_file_is_refused(place):
    record = place.record()
    record["scan1"].update(replaced=record["scan1"]["file"], file="of the file that was never moved here")
    (place.labels / "fold_0" / "pseudo_labels.json").write_text(json.dumps({"cases": record}))
    with pytest.raises(DatasetError, match="1 of 4 .* another model or threshold than the newest: scan1"):
        prepare(place)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("corrected", [True, False])
def test_a_model_that_validated_other_cases_is_refused_also_where_its_labels_were_corrected(place, raw, corrected):
    if corrected:
        change(place.labels / "fold_0" / "scan0.nii.gz", lambda label: np.where(label == 3, 2, label))
    prepare(place)
    with pytest.raises(DatasetError, match="4 of 4 .* a model that validated other cases"):
        prepare(place, raw=raw, validation=["case9"])
    if corrected:
        with pytest.raises(DatasetError, match="1 of 1 .* a model that validated other cases"):
            prepare(place, raw=raw, validation=["case9"], cases=["scan0"])


@pytest.mark.parametrize("raw", [True, False])
def test_another_class_would_take_the_ignore_labels_value(place, raw):
    prepare(place)
    place.change_dataset_json(labels={"background": 0, "shell": 1, "core": 2, "rim": 3})
    with pytest.raises(DatasetError, match="4 of 4 .* are of other labels than dataset.json now has"):
        prepare(place, raw=raw)


def test_without_the_raw_folder_what_is_there_is_used(place):
    folder = prepare(place)
    assert prepare(place, raw=False) == folder
    with pytest.raises(DatasetError, match="lacks scan9"):
        prepare(place, raw=False, cases=["scan0", "scan9"])
    plans = place.plans.plans
    plans["configurations"]["3d_fullres"]["spacing"] = [1.5, 1.3, 0.8]
    with pytest.raises(DatasetError, match="other plans"):
        prepare(place, raw=False, plans=PlansManager(plans))
    os.remove(folder / "scan1_seg.b2nd")
    with pytest.raises(DatasetError, match="lacks scan1"):
        prepare(place, raw=False)
    prepare(place)
    assert (folder / "scan1_seg.b2nd").exists()


def test_with_the_raw_folder_removed_labels_are_gone(place):
    prepare(place)
    os.remove(place.labels / "fold_0" / "scan0.nii.gz")
    with pytest.raises(DatasetError, match=r"lacks scan0.* run: nnUNetv2_crossmatch pseudo-label .* --threshold 0.6"):
        prepare(place)
    shutil.rmtree(place.labels)
    with pytest.raises(DatasetError, match="has no pseudo-labels"):
        prepare(place)


def test_a_label_of_unknown_make_is_refused(place):
    record = place.record()
    del record["scan1"]
    (place.labels / "fold_0" / "pseudo_labels.json").write_text(json.dumps({"cases": record}))
    with pytest.raises(DatasetError, match=r"lacks scan1, or pseudo_labels.json does not say what made them"):
        prepare(place)


def test_errors_name_the_command(place):
    with pytest.raises(DatasetError, match=r"Run: nnUNetv2_crossmatch pseudo-label -d .* -c 3d_fullres .* -f 3"):
        prepare(place, fold=3)
    other = place.labels.with_name(place.labels.name.replace("Trainer", "TrainerOther"))
    shutil.copytree(place.labels, other)
    with pytest.raises(DatasetError, match=f"several trainers: {other}/fold_0, {place.labels}/fold_0. Remove all but"):
        prepare(place)
    assert "nnUNetTrainerOther__" in str(prepare(place, teacher="nnUNetTrainerOther"))
    shutil.rmtree(other)
    assert "nnUNetTrainer__" in str(prepare(place))


def test_labels_that_do_not_fit_are_all_named(place):
    change(place.labels / "fold_0" / "scan0.nii.gz", lambda label: label + 4)
    change(place.labels / "fold_0" / "scan1.nii.gz", lambda label: label[1:])
    (place.labels / "fold_0" / "scan2.nii.gz").write_bytes(b"nonsense")
    with pytest.raises(DatasetError) as e:
        prepare(place)
    assert "scan0.nii.gz has the value 4 and" in str(e.value)
    assert "Allowed are 0 (background), 1 (shell), 2 (core), 3 (ignore)." in str(e.value)
    assert "scan1.nii.gz has shape (15, 24, 24)" in str(e.value) and "scan2.nii.gz cannot be read" in str(e.value)
    assert "scan3" not in str(e.value)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_a_correction_saved_in_another_orientation_is_refused(place, reader):
    plans = place.plans.plans
    plans["image_reader_writer"] = reader
    manager = PlansManager(plans)
    preprocess_unlabeled(place.planned(plans=manager), 1)
    entries = place.record()
    for case, entry in Manifest.read(place.preprocessed / "nnUNetPlans_3d_fullres_unlabeled").cases.items():
        entries[case]["image"] = image_stamp(entry)
    (place.labels / "fold_0" / "pseudo_labels.json").write_text(json.dumps({"cases": entries}))
    prepare(place, plans=manager)
    file = str(place.labels / "fold_0" / "scan0.nii.gz")
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(file), "RAS"), file)
    with pytest.raises(DatasetError, match="scan0.nii.gz has another origin or orientation than its scan"):
        prepare(place, plans=manager)


def test_a_full_disk_is_named_and_no_label_is_blamed(place):
    with small_files(400), pytest.raises(OSError, match="File too large: .*_pseudo"):
        prepare(place)
    target = place.preprocessed / "nnUNetPlans_3d_fullres_pseudo" / place.labels.name / "fold_0"
    assert not list(target.glob("*scan*")) and not list(target.glob(".incoming*"))
    assert len(times(prepare(place))) == 8


def test_a_correction_under_another_name_is_named(place):
    folder = place.labels / "fold_0"
    shutil.copy(folder / "scan1.nii.gz", folder / "scan1_corrected.nii.gz")
    for use in (prepare, lambda place: place.write()):
        with pytest.raises(
            DatasetError, match=r"fold_0: 1 is no case of the dataset: 'scan1_corrected' \(nearest: 'scan"
        ):
            use(place)
    (folder / "scan1_corrected.nii.gz").unlink()
    prepare(place)
