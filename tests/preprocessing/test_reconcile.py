import json
import shutil
from pathlib import Path

import pytest

from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.preprocessing.reconcile import finder, known_cases, prepare_splits, reconcile
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.conftest import DATASET, make_raw_dataset

LABELED = [f"case{i}" for i in range(4)]
FOLDS = [{"train": LABELED[2:], "val": LABELED[:2]}, {"train": LABELED[:2], "val": LABELED[2:]}]


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    raw, preprocessed = tmp_path / "raw" / DATASET, tmp_path / "preprocessed" / DATASET
    make_raw_dataset(raw, labeled=4, unlabeled=2, test=1)
    preprocessed.mkdir(parents=True)
    return Dataset(raw, preprocessed, json.loads((raw / "dataset.json").read_text()))


def found(dataset: Dataset, patients=None, folds=None, fold=None) -> tuple[list[str], list[str]]:
    splits(dataset).write_text(json.dumps(FOLDS if folds is None else folds))
    parts = known_cases(dataset)
    return reconcile(dataset, patients or {}, parts, parts["imagesTr"], fold)


def splits(dataset: Dataset) -> Path:
    return dataset.preprocessed / "splits_final.json"


def test_what_fits_is_no_news(dataset):
    assert found(dataset, {"case0": "1", "scan1": "1", "test0": "2"}) == ([], [])


@pytest.mark.parametrize("written", ["{}.nii.gz", "{}_0000", "{}_0000.nii.gz", "imagesTr/{}_0000.nii.gz", "../a\\{}"])
@pytest.mark.parametrize("case", ["case1", "CASE1", "scan1", "test0"])
def test_ids_of_patients_that_are_no_case_are_errors_with_the_nearest(dataset, written, case):
    id = written.format(case)
    ((error,), (warning,)) = found(dataset, {id: "p", "case0": "p", "zzz": "q"})
    assert f"patients.json: 1 is no case of the dataset: {id!r} (nearest: {case.lower()!r})." in error
    assert "patients.json: 1 id is of no case of the dataset that is here (zzz)" in warning


def test_patients_of_scans_that_are_elsewhere_are_a_warning(dataset):
    elsewhere = {f"{name}{i}": "p" for name in ("case", "test", "other_hospital_") for i in range(4, 100)}
    for here in ({}, {"case0": "a", "scan1": "a"}):  # with cases of the same name that have no patient, too
        errors, (warning,) = found(dataset, elsewhere | here)
        assert errors == [] and "288 ids are of no case" in warning and "(case4, case5, case6 and 285 more)" in warning
    ((error,), (warning,)) = found(dataset, {**elsewhere, "caes1": "a", "case2.nii.gz": "a", "case03": "a"})
    assert "3 are no cases of the dataset: 'caes1' (nearest: 'case1'), 'case2.nii.gz' (nearest: 'case2'), " in error
    assert "'case03' (nearest: 'case3')" in error
    assert "288 ids" in warning
    named = dict.fromkeys((*LABELED, "scan0", "scan1", "test0"), "p")
    assert found(dataset, {**named, "case1_b": "p"})[0] == [], "every case has its patient: none is meant"
    shutil.rmtree(dataset.raw / "imagesTs")
    errors, (warning,) = found(dataset, named)
    assert errors == [] and "1 id is of no case of the dataset that is here (test0)" in warning


def test_nothing_is_split_by_patients_that_are_no_cases(dataset):
    file = dataset.raw / "patients.json"
    file.write_text(json.dumps({f"{case}_0000": "p" for case in LABELED}))
    with pytest.raises(DatasetError, match="patients.json: 4 are no cases"):
        prepare_splits(dataset)
    assert not splits(dataset).exists()
    file.write_text(json.dumps({"case0": "p", "case1": "p"}), encoding="utf-16")
    assert prepare_splits(dataset) == {"case0": "p", "case1": "p"}
    written = json.loads(splits(dataset).read_text())
    assert all(("case0" in fold["val"]) == ("case1" in fold["val"]) for fold in written)
    assert prepare_splits(Dataset(None, dataset.preprocessed, dataset.json)) == {"case0": "p", "case1": "p"}


def test_folds_with_ids_that_are_no_labeled_case(dataset):
    folds = [{"train": ["case0", "case1", "Case2"], "val": ["scan0", "case2", "case3"]}]
    ((error,), _) = found(dataset, folds=folds)
    assert "splits_final.json: 2 are no labeled cases of the dataset: 'Case2' (nearest: 'case2'), 'scan0'" in error
    assert f"rm {splits(dataset)} && nnUNetv2_crossmatch preprocess -d {DATASET}" in error
    assert "cannot be compared" in error
    assert found(dataset, folds=folds, fold="all") == ([], [])


def test_a_case_on_both_sides_is_an_error_and_one_in_no_fold_a_warning(dataset):
    folds = [*FOLDS, {"train": ["case1", "case2"], "val": ["case2", "case3"]}]
    ((error,), warnings) = found(dataset, folds=folds)
    assert "fold 2 trains and validates case2. New splits: rm " in error and warnings == []
    (errors, (warning,)) = found(dataset, folds=[{"train": ["case1"], "val": ["case3"]}])
    assert errors == [] and "2 labeled cases are in no fold" in warning and "(case0, case2)" in warning
    assert "nnUNetv2_plan_and_preprocess" in warning and "New splits: rm " in warning


def preprocess(dataset: Dataset, folder: str, *cases: str) -> None:
    (dataset.preprocessed / folder).mkdir()
    for case in cases:
        (dataset.preprocessed / folder / f"{case}.pkl").touch()


def test_a_case_that_is_preprocessed_but_gone_from_the_raw_folder_is_a_warning_in_check_and_in_training(dataset):
    preprocess(dataset, "nnUNetPlans_3d_fullres", *LABELED)
    (dataset.raw / "imagesTr" / "case3_0000.nii.gz").unlink()
    patients = {"case3": "p", "case2": "p"}
    errors, (warning,) = found(dataset, patients)
    assert errors == [] and "preprocessed cases that are not in imagesTr any more: 1 (case3)" in warning
    (dataset.raw / "patients.json").write_text(json.dumps(patients))
    assert prepare_splits(dataset, LABELED, 0) == prepare_splits(dataset) == patients
    here = Dataset(None, dataset.preprocessed, dataset.json)
    assert reconcile(here, patients, {"imagesTr": set(LABELED[:3])}, LABELED[:3]) == ([], [])


def test_unlabeled_and_pseudo_labeled_cases_are_none_of_a_fold(dataset):
    preprocess(dataset, "nnUNetPlans_3d_fullres_unlabeled", "scan0", "old")
    ((error,), _) = found(dataset, folds=[{"train": LABELED, "val": ["old"]}])
    assert "1 is no labeled case of the dataset: 'old'" in error


def test_a_training_with_a_case_that_is_not_preprocessed_is_told_to_preprocess(dataset):
    assert found(dataset) == ([], [])
    with pytest.raises(DatasetError, match=r"not preprocessed: 1 \(case3\). Run nnUNetv2_plan_and_preprocess"):
        prepare_splits(dataset, LABELED[:3], 0)
    prepare_splits(dataset, LABELED[:3], "all")


@pytest.mark.parametrize(
    ("folds", "complaint"),
    [
        ({"train": LABELED, "val": []}, "it is no list of folds"),
        ({"0": FOLDS[0]}, "it is no list of folds"),
        ([], "it has no fold"),
        ([FOLDS[0], ["case0"]], "fold 1 is not of the form"),
        ([{"train": LABELED}], 'fold 0 has no "val", only train'),
        ([{"train": LABELED[:2], "validation": LABELED[2:]}], 'fold 0 has no "val", only train, validation'),
        ([{"train": {"case0": 1}, "val": ["case1"]}], 'fold 0 has as "train" no list of case ids'),
        ([{"train": ["case0"], "val": "case1"}], 'fold 0 has as "val" no list of case ids'),
        ([{"train": ["case0"], "val": [1]}], 'fold 0 has as "val" no list of case ids'),
        ([{"train": [], "val": ["case1"]}], 'fold 0 has no case in "train"'),
    ],
)
def test_splits_of_another_form_are_named_with_the_fold(dataset, folds, complaint):
    with pytest.raises(DatasetError) as error:
        found(dataset, folds=folds)
    (problem,) = error.value.problems
    assert problem.startswith(f"{splits(dataset)}: {complaint}") and "New splits: rm " in problem


def test_splits_that_nnunet_cannot_read_are_written_as_it_can(dataset):
    for encoding in ("utf-8-sig", "utf-16"):
        splits(dataset).write_text(json.dumps(FOLDS), encoding=encoding)
        prepare_splits(dataset)
        assert json.loads(splits(dataset).read_text(encoding="utf-8")) == FOLDS
    before = splits(dataset).stat().st_mtime_ns
    prepare_splits(dataset)
    assert splits(dataset).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("patients", "complaint"),
    [
        ({"case0": "P1", "case1": "p1 "}, "are 'P1' and 'p1 ' one patient"),
        ({"case0": None, "case1": "p"}, "not of the form .*: see case0"),
        ({"case0": " "}, "not of the form .*: see case0"),
        ({"P1": ["case0", "case1"]}, "not of the form .*: see P1"),
        ([["case0", "P1"]], "not of the form"),
    ],
)
def test_patients_of_another_form_are_named(dataset, patients, complaint):
    (dataset.raw / "patients.json").write_text(json.dumps(patients))
    with pytest.raises(DatasetError, match=f"patients.json.*{complaint}"):
        prepare_splits(dataset)


def test_without_the_raw_scans_and_a_check_patients_are_taken_as_they_are(dataset):
    here = Dataset(None, dataset.preprocessed, dataset.json)
    (dataset.preprocessed / "patients.json").write_text('{"test7": "p"}')
    assert prepare_splits(here, LABELED) == {"test7": "p"}
    assert splits(dataset).exists()


def test_the_nearest_is_the_same_but_for_its_spelling_before_it_is_alike():
    nearest = finder(["lab_001", "lab_010", "Müller", "amos_0004"])
    assert nearest("LAB_010_0000.nii.gz") == "lab_010"
    assert nearest("amos_0004.nii.gz") == "amos_0004"
    assert nearest("Mu\u0308ller") == "Müller"
    assert nearest("lab_0001") == "lab_001"
    assert nearest("lab_010_corrected_by_hand") == "lab_010"
    assert nearest("quite other") is None
