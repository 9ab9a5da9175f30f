import hashlib
import json
import os
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_crossmatch.self_training import predict
from nnunetv2_crossmatch.self_training.record import Origin
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.conftest import small_files

CASES = [f"scan{i}" for i in range(4)]


def read(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def times(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.nii.gz")}


def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def no_prediction(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("it predicted")

    monkeypatch.setattr(predict, "_predict", refuse)


def test_labels_are_the_folds_own_model_where_it_is_sure(place):
    written = place.write((0, 1))
    assert written[0].current == CASES and written[1].predicted == CASES
    found = {}
    for fold in (0, 1):
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(place.model), (fold,))
        for case in CASES:
            file = place.raw / "imagesUn" / f"{case}_0000.nii.gz"
            image, properties = predictor.plans_manager.image_reader_writer_class().read_images([str(file)])
            segmentation, probabilities = predictor.predict_single_npy_array(
                image, properties, save_or_return_probabilities=True
            )
            label = read(place.labels / f"fold_{fold}" / f"{case}.nii.gz")
            assert np.array_equal(label, np.where(probabilities.max(0) >= 0.6, segmentation, 3))
            found[fold, case] = label
    assert all(len(np.unique(found[0, case])) > 2 and (found[0, case] == 3).any() for case in CASES)
    assert any((found[0, case] != found[1, case]).any() for case in CASES)


def test_the_label_lies_on_its_scan_with_a_picture_and_a_record(place):
    for case in CASES:
        label = sitk.ReadImage(str(place.labels / "fold_0" / f"{case}.nii.gz"))
        scan = sitk.ReadImage(str(place.raw / "imagesUn" / f"{case}_0000.nii.gz"))
        for of in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(label, of)() == getattr(scan, of)()
        assert (place.labels / "fold_0" / "pictures" / f"{case}.png").stat().st_size > 10_000
    record = place.record()
    checkpoint = place.model / "fold_0" / "checkpoint_final.pth"
    model = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    for case in CASES:
        file = place.labels / "fold_0" / f"{case}.nii.gz"
        entry, label = record[case], read(file)
        assert (entry["model"], entry["threshold"], entry["trainer"]) == (model, 0.6, "nnUNetTrainer")
        assert entry["labels"] == {"background": 0, "shell": 1, "core": 2, "ignore": 3}
        assert entry["validation"] == place.validation() and "nnunetv2" in entry["versions"]
        assert entry["file"] == hashlib.sha256(file.read_bytes()).hexdigest()
        whole = place.labels / "fold_0" / "predictions" / file.name
        assert entry["prediction"] == hashlib.sha256(whole.read_bytes()).hexdigest() != entry["file"]
        assert {c for c, share in entry["confident"].items() if share} == {str(c) for c in {*label.flat} - {3}}
    assert not list((place.labels / "fold_0").glob(".incoming*"))


def test_nothing_is_predicted_twice(place, no_prediction):
    before = times(place.labels / "fold_0")
    assert place.write()[0].current == CASES
    assert times(place.labels / "fold_0") == before


def test_an_interrupted_run_goes_on_where_it_was(place, monkeypatch):
    place.interrupt(monkeypatch, after=2, folds=(1,))
    written = place.write((1,))[1]
    assert (written.current, written.predicted) == (CASES[:2], CASES[2:])


def test_of_two_runs_at_once_the_second_waits_and_finds_all_done(place):
    with ThreadPoolExecutor(2) as pool:
        both = [run.result()[1] for run in [pool.submit(place.write, (1,)) for _ in range(2)]]
    assert sorted((written.predicted, written.current) for written in both) == [([], CASES), (CASES, [])]


def test_another_threshold_or_model_labels_again(place):
    assert place.write(threshold=0.7)[0].predicted == CASES
    place.make_model(0, seed=7)
    assert place.write(threshold=0.7)[0].predicted == CASES
    assert place.write(threshold=0.7)[0].current == CASES


def test_corrections_are_kept_unless_overwritten(place):
    file = place.labels / "fold_0" / "scan1.nii.gz"
    shutil.copy(place.labels / "fold_0" / "scan0.nii.gz", file)
    corrected = file.read_bytes()
    for threshold in (0.6, 0.7):
        written = place.write(threshold=threshold)[0]
        assert written.corrected == ["scan1"] and file.read_bytes() == corrected
    assert written.predicted == ["scan0", "scan2", "scan3"]
    written = place.write(threshold=0.7, overwrite=True)[0]
    assert written.predicted == ["scan1"] and file.read_bytes() != corrected


def test_what_is_corrected_while_the_command_runs_is_kept(place, monkeypatch):
    file = place.labels / "fold_0" / "scan1.nii.gz"
    before, label_all = place.record()["scan1"], predict._predict

    def corrected_meanwhile(*arguments):
        for case, entry in label_all(*arguments):
            if case == "scan1":
                shutil.copy(place.labels / "fold_0" / "scan3.nii.gz", file)
            yield case, entry

    monkeypatch.setattr(predict, "_predict", corrected_meanwhile)
    expected = (place.labels / "fold_0" / "scan3.nii.gz").read_bytes()
    written = place.write(threshold=0.7)[0]
    assert (written.corrected, written.predicted) == (["scan1"], ["scan0", "scan2", "scan3"])
    assert file.read_bytes() == expected and place.record()["scan1"] == before


def test_killed_between_record_and_file_is_not_a_correction(place):
    record = place.record()
    entry = record["scan1"]
    entry.update(replaced=entry["file"], file="of the file that was never moved here", threshold=0.7)
    (place.labels / "fold_0" / "pseudo_labels.json").write_text(json.dumps({"cases": record}))
    written = place.write(threshold=0.6)[0]
    assert (written.corrected, written.predicted) == ([], ["scan1"])


def test_scans_of_held_out_patients_are_left_out(place):
    held_out = place.validation()[0]
    (place.raw / "patients.json").write_text(json.dumps({held_out: "p", "scan2": "p"}))
    place.write((1,))
    shutil.rmtree(place.labels / "fold_0")
    written = place.write()[0]
    assert (written.held_out, written.predicted) == (["scan2"], ["scan0", "scan1", "scan3"])
    assert not (place.labels / "fold_0" / "scan2.nii.gz").exists()
    assert (place.labels / "fold_1" / "scan2.nii.gz").exists()


def test_regions_and_processes(place):
    place.change_dataset_json(labels={"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
    place.make_model(0, seed=0, certainty=100)
    assert place.write(num_processes=2)[0].predicted == CASES
    label = read(place.labels / "fold_0" / "scan0.nii.gz")
    assert set(np.unique(label)) <= {0, 1, 2, 3} and 3 in label and len(np.unique(label)) > 2
    place.change_dataset_json(regions_class_order=[2, 1])
    with pytest.raises(ValueError, match="other labels"):
        place.write()


def test_fold_all(place):
    place.make_model("all", seed=0)
    written = place.write(("all",))["all"]
    assert (written.predicted, written.held_out) == (CASES, [])
    assert place.record("all")["scan0"]["validation"] == []


def test_all_trained_folds_label_together_for_fold_all(place):
    place.write(("all",))
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(place.model), (0, 1))
    for case in CASES:
        file = place.raw / "imagesUn" / f"{case}_0000.nii.gz"
        image, properties = predictor.plans_manager.image_reader_writer_class().read_images([str(file)])
        segmentation, probabilities = predictor.predict_single_npy_array(
            image, properties, save_or_return_probabilities=True
        )
        folder = place.labels / "fold_all"
        assert np.array_equal(read(folder / "predictions" / f"{case}.nii.gz"), segmentation)
        sure = np.where(probabilities.max(0) >= 0.6, segmentation, 3)
        assert np.array_equal(read(folder / f"{case}.nii.gz"), sure)
    hashes = [
        hashlib.sha256((place.model / f"fold_{fold}" / "checkpoint_final.pth").read_bytes()).hexdigest()
        for fold in (0, 1)
    ]
    entry = place.record("all")["scan0"]
    assert (entry["folds"], entry["model"]) == ([0, 1], hashlib.sha256("".join(hashes).encode()).hexdigest())
    assert place.write(("all",))["all"].current == CASES
    place.make_model(2, seed=2)
    assert place.write(("all",))["all"].predicted == CASES
    assert place.write((0,))[0].current == CASES  # a fold's own labels are of its own model


def test_corrections_that_no_training_could_use_are_refused_by_name_before_anything_is_labeled(place, no_prediction):
    for case, value in (("scan0", 7), ("scan2", 9)):
        file = place.labels / "fold_0" / f"{case}.nii.gz"
        label = sitk.ReadImage(str(file))
        label[3, 3, 3] = value
        sitk.WriteImage(label, str(file))
    with pytest.raises(DatasetError) as e:
        place.write((1, 0))
    assert len(e.value.problems) == 2
    assert "fold_0/scan0.nii.gz has the value 7. Allowed are 0 (background), 1 (shell), 2 (core), 3 (ignore)." in str(
        e.value
    )
    assert "scan2.nii.gz has the value 9" in str(e.value)


def test_a_class_without_a_sure_voxel_is_named_unless_somebody_painted_it(place):
    assert any("no voxel of shell is predicted in any of 4 labels" in line for line in place.write()[0].warnings)
    file = place.labels / "fold_0" / "scan1.nii.gz"
    label = sitk.ReadImage(str(file))
    label[3, 3, 3] = 1
    sitk.WriteImage(label, str(file))
    written = place.write()[0]
    assert "shell" not in "".join(written.warnings) and written.corrected == ["scan1"]
    assert set(written.confident) == {"background", "shell", "core"}


def test_natural_images(tmp_path):
    """Label and picture are both PNG files, and lie apart."""
    plans = {
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "2d": {
                "architecture": {},
                "spacing": [1.0, 1.0],
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0},
            }
        },
    }
    dataset_json = {"labels": {"background": 0, "lesion": 1}, "file_ending": ".png"}
    logits = np.random.default_rng(0).normal(size=(2, 1, 20, 30)).astype(np.float32)
    properties = {
        "spacing": (999, 1, 1),
        "shape_before_cropping": (1, 20, 30),
        "bbox_used_for_cropping": [[0, 1], [0, 20], [0, 30]],
        "shape_after_cropping_and_before_resampling": (1, 20, 30),
    }
    image = tmp_path / "a_0000.png"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(600, dtype=np.uint8).reshape(20, 30)), str(image))
    origin = Origin("T", "P", "2d", 0, [0], "c", "m", 0.7, {**dataset_json["labels"], "ignore": 2}, [], {})
    predict._export("a", [image], logits, properties, plans, dataset_json, origin, tmp_path)
    assert set(np.unique(read(tmp_path / "a" / "a.png"))) == {0, 1, 2}
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_errors_come_first_and_name_the_fix(place, no_prediction, monkeypatch):
    with pytest.raises(FileNotFoundError, match="fold_2/checkpoint_final.pth is missing. Run: nnUNetv2_train") as e:
        place.write(None)
    assert "fold_4" in str(e.value) and "fold_1" not in str(e.value)
    with pytest.raises(ValueError, match="has folds 0 to 4, not 5"):
        place.write((5,))
    with pytest.raises(ValueError, match="0 to 1, not 90"):
        place.write(threshold=90)
    place.change_dataset_json(labels={"background": 0, "all": 1})
    with pytest.raises(ValueError, match="other labels"):
        place.write()
    place.change_dataset_json(labels={"background": 0, "shell": 1, "core": 2})
    shutil.rmtree(place.raw / "imagesUn")
    shutil.rmtree(place.preprocessed / "nnUNetPlans_3d_fullres_unlabeled")
    with pytest.raises(DatasetError, match="has no unlabeled scans"):
        place.write()


def test_plans_that_changed_since_the_training_are_refused(place):
    plans = json.loads((place.model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]
    (place.model / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match="other plans"):
        place.write()


def test_a_model_that_validated_other_cases_is_refused(place, no_prediction):
    file = place.preprocessed / "splits_final.json"
    splits = json.loads(file.read_text())
    file.write_text(json.dumps([splits[1], splits[0], *splits[2:]]))
    with pytest.raises(ValueError, match="validated other cases than fold 0 of splits_final.json now does"):
        place.write()
    (place.model / "fold_0" / "validation" / "summary.json").unlink()  # killed while it validated
    with pytest.raises(ValueError, match="validated other cases"):
        place.write()


def test_without_the_models_validation_the_split_is_believed_with_a_warning(place):
    assert "summary.json" not in "".join(place.write()[0].warnings)
    shutil.rmtree(place.model / "fold_0" / "validation")
    assert "validation has no summary.json" in place.write()[0].warnings[0]


def test_scans_that_were_preprocessed_elsewhere_need_not_be_here(place):
    shutil.rmtree(place.raw / "imagesUn")
    shutil.rmtree(place.labels / "fold_0")
    assert place.write()[0].predicted == CASES


def test_a_label_without_a_sure_voxel_is_named(place):
    place.make_model(0, seed=0, certainty=0.01)
    warnings = place.write(threshold=1)[0].warnings
    assert "4 of 4 labels have no sure voxel (scan0, scan1, scan2 and 1 more)" in warnings[0]
    assert "Use a lower --threshold (it is 1)" in warnings[0]
    of_classes = dict(re.findall(r"no voxel of (\w+) is (sure|predicted) in any of 4 labels", "".join(warnings)))
    assert of_classes.keys() == {"background", "shell", "core"} and "sure" in of_classes.values()


def test_a_leak_of_another_fold_stops_not_this_one_and_is_a_warning(place):
    images = place.raw / "imagesTr"
    one, two = (images / f"{place.validation(fold)[0]}_0000.nii.gz" for fold in (1, 2))
    shutil.copy(one, two)
    with pytest.raises(DatasetError, match="trains and validates in fold 1"):
        place.write((1,))
    assert "The same image" in place.write((0,))[0].warnings[0]


def test_a_killed_worker_is_explained(place, monkeypatch):
    monkeypatch.setattr(predict, "_export", die)
    with pytest.raises(RuntimeError, match=r"killed at the pseudo-label of scan\d, .* Use fewer"):
        place.write((1,), num_processes=2)


def test_a_full_disk_is_named_and_no_truncated_label_is_kept(place):
    """SimpleITK writes a truncated file without a word."""
    shutil.rmtree(place.labels)
    with small_files(500), pytest.raises(OSError, match=f"File too large: '{place.labels}"):
        place.write()
    assert {f.name for f in (place.labels / "fold_0").iterdir()} <= {".lock", "pictures", "predictions"}
    assert not list((place.labels / "fold_0" / "predictions").glob("*"))
    assert sorted(place.write()[0].predicted) == [f"scan{i}" for i in range(4)]
