import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.preprocessing.listing import list_unlabeled
from tests.conftest import make_raw_dataset, run, use_folders

SOURCE = "Dataset004_Balls"


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    use_folders(tmp_path, monkeypatch.setenv)
    make_raw_dataset(tmp_path / "raw" / SOURCE, labeled=10, unlabeled=2, test=2)
    return tmp_path


def hide(base: Path, target: int, *options: str) -> tuple[Path, set[str], set[str]]:
    """The new dataset, its labeled and its unlabeled cases."""
    main(["hide-labels", "-d", "4", "-t", str(target), *options])
    folder = base / "raw" / f"Dataset{target:03d}_Balls"
    return (
        folder,
        set(load_json(str(folder / "dataset.json"))["dataset"]),
        set(load_json(str(folder / "unlabeled.json"))),
    )


def test_no_image_is_copied_and_all_cases_are_there(base):
    folder, labeled, unlabeled = hide(base, 5, "--labeled", "30%")
    assert len(labeled) == 3
    assert labeled | unlabeled == {*(f"case{i}" for i in range(10)), "scan0", "scan1"}
    assert not labeled & unlabeled
    assert {p for p in folder.rglob("*.nii.gz") if p.is_file() and not p.is_symlink()} == set()
    assert {f.name for f in (folder / "labelsUn").iterdir()} == {
        f"{case}.nii.gz" for case in unlabeled if "case" in case
    }
    truth = base / "raw" / SOURCE / "labelsTr"
    for file in (folder / "labelsUn").iterdir():
        assert file.resolve() == truth / file.name
    assert (folder / "imagesTs" / "test1_0000.nii.gz").exists() and (folder / "labelsTs" / "test1.nii.gz").exists()
    described = load_json(str(folder / "dataset.json"))
    assert described["numTraining"] == 3
    assert list(described["labels"]) == ["background", "shell", "core"], "regions depend on this order"


@pytest.mark.slow
def test_stock_planning_reads_it(base):
    folder, labeled, _ = hide(base, 5, "--labeled", "2")
    run(
        "nnUNetv2_plan_and_preprocess", "-d", "5", "-c", "3d_fullres", "-np", "1", "-npfp", "1",
        "--verify_dataset_integrity", nnUNet_n_proc_DA="1",
    )  # fmt: skip
    preprocessed = base / "preprocessed" / folder.name
    assert {f.stem for f in (preprocessed / "nnUNetPlans_3d_fullres").glob("*.pkl")} == labeled
    main(["preprocess", "-d", "5", "-c", "3d_fullres", "-np", "1"])
    assert len(list((preprocessed / "nnUNetPlans_3d_fullres_unlabeled").glob("*.pkl"))) == 10


def test_more_labels_contain_fewer_and_the_seed_draws_others(base):
    _, two, _ = hide(base, 5, "--labeled", "2")
    _, five, _ = hide(base, 6, "--labeled", "5")
    _, other, _ = hide(base, 7, "--labeled", "5", "--seed", "1")
    assert two < five and other != five


def test_patients_stay_together(base):
    folder, labeled, _ = hide(base, 5, "--labeled", "2", "--group-by", r"(?:case|scan)(\d)|test\d")
    assert len(labeled) == 2  # every case is a patient of its own: the first group
    assert load_json(str(folder / "patients.json"))["scan1"] == "1"
    patients = base / "raw" / SOURCE / "patients.json"
    patients.write_text(json.dumps({f"case{i}": f"p{i // 2}" for i in range(10)}))
    folder, labeled, _ = hide(base, 6, "--labeled", "2")
    assert len(labeled) == 4
    assert len({int(case[-1]) // 2 for case in labeled}) == 2
    assert load_json(str(folder / "patients.json")) == load_json(str(patients))
    splits = load_json(str(base / "preprocessed" / folder.name / "splits_final.json"))
    assert [len(split["val"]) for split in splits] == [2, 2]


def test_a_dataset_that_is_hidden_already_can_be_hidden_further(base):
    hide(base, 5, "--labeled", "5")
    main(["hide-labels", "-d", "5", "-t", "6", "--labeled", "2"])
    folder = base / "raw" / "Dataset006_Balls"
    assert len(list_unlabeled(folder, load_json(str(folder / "dataset.json")))) == 10


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--labeled", "10"], "there are 10 labeled cases, and some must be left over"),
        (["--labeled", "0"], "there are 10 labeled cases"),
        (["--labeled", "few"], "give a number, or a share such as 10%"),
        (["--labeled", "0%"], "there are 10 labeled cases"),
        (["--labeled", "inf%"], "give a number, or a share such as 10%"),
        (["--labeled", "2", "--group-by", "case"], "'case' does not match scan0, scan1"),
        (["--labeled", "2", "--group-by", r"case(\d)|scan\d"], "does not match scan0, scan1"),
        (["--labeled", "2", "--group-by", "case("], "is no regular expression"),
    ],
)
def test_bad_requests_are_named_and_nothing_is_written(base, capsys, options, complaint):
    with pytest.raises(SystemExit):
        main(["hide-labels", "-d", "4", "-t", "5", *options])
    assert complaint in capsys.readouterr().err
    assert not (base / "raw" / "Dataset005_Balls").exists()


def test_missing_labels_are_named(base, capsys):
    (base / "raw" / SOURCE / "labelsTr" / "case7.nii.gz").unlink()
    with pytest.raises(SystemExit):
        main(["hide-labels", "-d", "4", "-t", "5", "--labeled", "2"])
    assert "labeled cases are missing: " in (said := capsys.readouterr().err) and "labelsTr/case7.nii.gz" in said


def test_patients_in_training_and_test_are_found_by_their_names(base, capsys):
    with pytest.raises(SystemExit):
        hide(base, 5, "--labeled", "2", "--group-by", r"\d")
    assert "Patient 1 is in training and held out: " in capsys.readouterr().err


def test_a_leak_of_the_source_is_reported(base, capsys):
    folder = base / "raw" / SOURCE
    twin = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "imagesTs" / "test0_0000.nii.gz")))
    sitk.WriteImage(sitk.GetImageFromArray(twin.astype(np.float64)), str(folder / "imagesTr" / "case3_0000.nii.gz"))
    with pytest.raises(SystemExit):
        main(["hide-labels", "-d", "4", "-t", "5", "--labeled", "2"])
    assert "imagesTs/test0" in capsys.readouterr().err


def test_the_spacing_file_of_a_tiff_goes_with_its_label(base):
    source = base / "raw" / SOURCE
    for file in sorted(source.rglob("*.nii.gz")):
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        stem = file.name.removesuffix(".nii.gz")
        tifffile.imwrite(file.with_name(f"{stem}.tif"), array)
        file.with_name(f"{stem.removesuffix('_0000')}.json").write_text('{"spacing": [0.7, 0.5, 0.5]}')
        file.unlink()
    described = load_json(str(source / "dataset.json"))
    (source / "dataset.json").write_text(json.dumps({**described, "file_ending": ".tif"}))
    folder, labeled, _ = hide(base, 5, "--labeled", "3")
    hidden = sorted({f"case{i}" for i in range(10)} - labeled)
    assert sorted(file.name for file in (folder / "labelsUn").iterdir()) == sorted(
        f"{case}{ending}" for case in hidden for ending in (".json", ".tif")
    )
    content = load_json(str(base / "preprocessed" / folder.name / "content.json"))
    assert {tuple(content["unlabeled"][case]["spacing"]) for case in hidden} == {(0.7, 0.5, 0.5)}


def test_patients_that_are_no_cases_draw_nothing_and_what_is_not_used_is_named(base, capsys):
    folder = base / "raw" / SOURCE
    (folder / "imagesUn" / "more.nrrd").touch()
    (folder / "patients.json").write_text(json.dumps({f"case{i}_0000": f"p{i // 2}" for i in range(10)}))
    with pytest.raises(SystemExit):
        main(["hide-labels", "-d", "4", "-t", "5", "--labeled", "2"])
    error = capsys.readouterr().err
    assert "patients.json: 10 are no cases of the dataset: 'case0_0000' (nearest: 'case0')" in error
    assert "more.nrrd" in error and not (base / "raw" / "Dataset005_Balls").exists()


def test_a_curve_is_a_dataset_for_each_number_with_the_labels_of_the_fewer(base, capsys):
    main(["hide-labels", "-d", "4", "-t", "5", "--curve", "2", "40%", "8"])
    labeled = [
        set(load_json(str(base / "raw" / f"Dataset{i:03d}_Balls" / "dataset.json"))["dataset"]) for i in (5, 6, 7)
    ]
    assert [len(cases) for cases in labeled] == [2, 4, 8] and labeled[0] < labeled[1] < labeled[2]
    printed = capsys.readouterr().out
    assert "nnUNetv2_plan_and_preprocess -d 5 6 7" in printed and "compare -d 5 " in printed and " --test" in printed
    with pytest.raises(SystemExit):
        main(["hide-labels", "-d", "4", "-t", "8", "--curve", "2", "--labeled", "2"])


@pytest.mark.parametrize(
    ("numbers", "taken", "message"),
    [
        (["2", "4", "400"], None, "400: there are 10 labeled cases"),
        (["4", "2"], None, "4 2: each number must be larger than the one before"),
        (["2", "20%"], None, "2 20%: each number must be larger"),
        (["2", "4"], 6, "Dataset id 6 is taken"),
    ],
)
def test_a_curve_that_cannot_be_made_leaves_no_dataset(base, capsys, numbers, taken, message):
    if taken:
        (base / "raw" / f"Dataset{taken:03d}_Other").mkdir()
    before = sorted(base.joinpath("raw").glob("Dataset*"))
    with pytest.raises(SystemExit):
        main(["hide-labels", "-d", "4", "-t", "5", "--curve", *numbers])
    assert message in capsys.readouterr().err and sorted(base.joinpath("raw").glob("Dataset*")) == before


def test_what_a_mac_leaves_beside_the_scans_is_no_case(base):
    for part in ("imagesTr", "labelsTr"):
        for file in sorted((base / "raw" / SOURCE / part).iterdir()):
            file.with_name(f"._{file.name}").write_bytes(b"Mac OS X")
    folder, labeled, unlabeled = hide(base, 5, "--labeled", "30%")
    assert len(labeled) == 3 and labeled | unlabeled == {*(f"case{i}" for i in range(10)), "scan0", "scan1"}
    assert len(list((folder / "labelsUn").iterdir())) == 7
