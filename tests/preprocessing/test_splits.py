import pytest
from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_crossmatch.preprocessing.splits import ensure_splits, known_patients, new_splits, validation_patients
from nnunetv2_crossmatch.utilities.errors import DatasetError


def test_without_patients_the_file_is_nnunets_own_byte_for_byte(tmp_path):
    cases = [f"c{i:02d}" for i in range(12)]
    save_json(generate_crossval_split(cases, seed=12345, n_splits=5), str(tmp_path / "stock.json"))
    ensure_splits(tmp_path, cases[::-1], {})
    assert (tmp_path / "splits_final.json").read_bytes() == (tmp_path / "stock.json").read_bytes()


def test_a_patients_scans_stay_together_in_as_many_folds_as_patients(tmp_path):
    cases = [f"p{i}_frame{j}" for i in range(3) for j in (1, 2)]
    ensure_splits(tmp_path, cases, {case: case[:2] for case in cases})
    splits = load_json(str(tmp_path / "splits_final.json"))
    assert len(splits) == 3
    assert sorted(case for split in splits for case in split["val"]) == cases
    for split in splits:
        assert sorted(split["train"] + split["val"]) == cases
        assert not {c[:2] for c in split["train"]} & {c[:2] for c in split["val"]}


def test_one_patient_makes_no_split_and_an_existing_file_is_kept(tmp_path):
    ensure_splits(tmp_path, ["a_1", "a_2"], {"a_1": "a", "a_2": "a"})
    assert not (tmp_path / "splits_final.json").exists()
    (tmp_path / "splits_final.json").write_text("mine")
    ensure_splits(tmp_path, ["a", "b"], {})
    assert (tmp_path / "splits_final.json").read_text() == "mine"


def test_patients_are_copied_so_that_the_preprocessed_folder_is_enough(tmp_path):
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    raw.mkdir()
    assert known_patients(raw, preprocessed) == {}
    save_json({"a_1": "a"}, str(raw / "patients.json"))
    assert known_patients(raw, preprocessed) == known_patients(None, preprocessed) == {"a_1": "a"}
    save_json({"a_1": 3}, str(raw / "patients.json"))
    assert known_patients(raw, preprocessed) == {"a_1": "3"}
    save_json(["a_1"], str(raw / "patients.json"))
    with pytest.raises(DatasetError, match="patients.json is not of the form"):
        known_patients(raw, preprocessed)
    save_json({"a_1": "b"}, str(raw / "patients.json"))
    assert known_patients(raw, preprocessed) == known_patients(None, preprocessed) == {"a_1": "b"}


def test_a_fold_that_is_not_there_or_divides_a_patient_is_refused(tmp_path):
    patients = {f"p{i}_{j}": f"p{i}" for i in range(3) for j in (1, 2)}
    with pytest.raises(ValueError, match="Train fold all"):
        validation_patients(tmp_path, 0, patients)
    ensure_splits(tmp_path, list(patients), patients)
    held_out = [validation_patients(tmp_path, fold, patients) for fold in range(3)]
    assert set.union(*held_out) == {"p0", "p1", "p2"} and all(len(h) == 1 for h in held_out)
    assert validation_patients(tmp_path, "all", patients) == set()
    with pytest.raises(ValueError, match="has folds 0 to 2, not 3"):
        validation_patients(tmp_path, 3, patients)
    save_json([{"train": ["p0_1", "p1_1"], "val": ["p0_2"]}], str(tmp_path / "splits_final.json"))
    with pytest.raises(ValueError, match="p0 trains and validates in fold 0"):
        validation_patients(tmp_path, 0, patients)


def test_the_command_for_new_splits_names_plans_that_are_there(tmp_path):
    assert "-c 3d_fullres (then" in new_splits(tmp_path)
    save_json({"configurations": {"2d": {}}}, str(tmp_path / "nnUNetResEncUNetLPlans.json"))
    assert "-c 2d -p nnUNetResEncUNetLPlans (then" in new_splits(tmp_path)
    save_json({"configurations": {"2d": {}}}, str(tmp_path / "aPlans.json"))
    save_json({"configurations": {"2d": {}, "3d_fullres": {}}}, str(tmp_path / "nnUNetPlans.json"))
    assert "-c 3d_fullres (then" in new_splits(tmp_path)
