import hashlib
import json
import shutil

import pytest

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.self_training.marks import describe_marks, marked_out, marked_out_now, take_review
from nnunetv2_crossmatch.self_training.preprocess import pseudo_labels_for_training
from nnunetv2_crossmatch.self_training.review import doubt, labeled_folds, write_review_page
from nnunetv2_crossmatch.utilities.errors import DatasetError

CASES = [f"scan{i}" for i in range(4)]
OPTIONS = ("-d", "901", "-c", "3d_fullres", "-p", "nnUNetPlansSmall", "-np", "1")


def sha256(file) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_doubt_is_the_unsure_share_of_foreground_classes():
    assert doubt({"0": 0.1, "1": 0.9, "2": 0.5}) == pytest.approx(0.3)
    assert doubt({"0": 1.0, "1": 0.8, "2": None}) == pytest.approx(0.2)
    assert doubt({"0": 1.0, "1": None}) == 1


def test_a_mark_is_of_one_label(tmp_path):
    marks = {
        "a": {"mark": "bad", "label": "1"},
        "b": {"mark": "to correct", "label": "2"},
        "c": {"mark": "good", "label": "3"},
    }
    assert marked_out(tmp_path, {"a": "1"}) == {}
    (tmp_path / "review.json").write_text(json.dumps(marks))
    files = {"a": "1", "b": "2", "c": "3", "d": "4"}
    assert marked_out(tmp_path, files) == {"a": "bad", "b": "to correct"}
    assert marked_out(tmp_path, {**files, "a": "labeled anew", "b": "corrected"}) == {}
    assert marked_out(tmp_path, {"c": "3"}) == {"a": "bad", "b": "to correct"}  # as where the others were never copied
    assert describe_marks({"a": "bad", "b": "to correct", "z": "bad"}, tmp_path) == [
        "2 marked bad and left out of the training: a, z.",
        f"1 left out until they are corrected in {tmp_path}: b.",
    ]


@pytest.fixture
def reviewed(place, tmp_path):
    """A file as the page saves it."""
    marks = {"scan0": "bad", "scan1": "to correct", "scan2": "good"}
    file = tmp_path / "downloaded.json"
    content = {"dataset": place.raw.name, "model": place.model.name, "fold": 0}
    labels = {case: sha256(place.labels / "fold_0" / f"{case}.nii.gz") for case in marks}
    content["marks"] = {case: {"mark": mark, "label": labels[case]} for case, mark in marks.items()}
    file.write_text(json.dumps(content))
    return file


def used(place, raw=True):
    planned, validation = place.planned(raw), place.validation()
    return sorted(pseudo_labels_for_training(planned, 0, CASES, validation, None, num_processes=1)[2])


def test_the_page_shows_every_label_the_most_doubtful_first(place, capsys):
    assert labeled_folds(place.planned(), "nnUNetTrainer") == [0]
    shutil.copy(place.labels / "fold_0" / "scan0.nii.gz", place.labels / "fold_0" / "scan1.nii.gz")
    main(["review", *OPTIONS])
    page = place.labels / "fold_0" / "review.html"
    printed = capsys.readouterr().out
    assert f"fold 0: 4 pseudo-labels, open in a browser: {page}" in printed
    command = "-f 0 -tr nnUNetTrainer -chk checkpoint_final.pth --threshold 0.6 --review DOWNLOADED.json"
    text = page.read_text()
    assert command in printed and command in text
    record = place.record()
    places = [text.index(f'data-case="{c}"') for c in sorted(CASES, key=lambda c: (-doubt(record[c]["confident"]), c))]
    assert places == sorted(places)
    assert text.count("corrected by hand") == 2  # the note, and what the filter reads
    assert text.count("<span>shell ") == 4 and text.count("data:image/jpeg") == 4
    assert str(place.raw / "imagesUn" / "scan3_0000.nii.gz") in text
    with pytest.raises(DatasetError, match="fold_1 has no pseudo-labels. Run: nnUNetv2_crossmatch pseudo-label"):
        write_review_page(place.planned(), "nnUNetTrainer", 1, 1)


def test_bad_labels_and_those_to_correct_are_left_out_until_they_are_corrected(place, reviewed, capsys):
    assert used(place) == CASES
    command = ["pseudo-label", *OPTIONS, "-f", "0", "--threshold", "0.6", "-device", "cpu"]
    main([*command, "--review", str(reviewed)])
    printed = capsys.readouterr().out
    assert "fold 0: 3 marks from" in printed and "0 labeled, 4 were there" in printed
    assert "1 marked bad and left out of the training: scan0." in printed
    assert used(place) == ["scan2", "scan3"]
    assert used(place, raw=False) == ["scan2", "scan3"]

    shutil.copy(place.labels / "fold_0" / "scan2.nii.gz", place.labels / "fold_0" / "scan1.nii.gz")
    assert used(place) == ["scan1", "scan2", "scan3"]
    assert used(place, raw=False) == ["scan1", "scan2", "scan3"]
    assert marked_out_now(place.labels / "fold_0", ".nii.gz") == {"scan0": "bad"}

    content = json.loads(reviewed.read_text())
    content["marks"] = {"scan3": {"mark": "bad", "label": sha256(place.labels / "fold_0" / "scan3.nii.gz")}}
    reviewed.write_text(json.dumps(content))
    assert take_review(place.planned(), "nnUNetTrainer", reviewed)[1].keys() == {"scan3"}
    assert used(place) == ["scan1", "scan2"], "the older ones stay"
    content["marks"]["scan3"]["mark"] = None  # a saved mark that was cleared
    reviewed.write_text(json.dumps(content))
    take_review(place.planned(), "nnUNetTrainer", reviewed)
    assert used(place) == ["scan1", "scan2", "scan3"]


def test_where_all_are_bad_there_is_nothing_to_train_on(place, reviewed):
    content = json.loads(reviewed.read_text())
    labels = {case: sha256(place.labels / "fold_0" / f"{case}.nii.gz") for case in CASES}
    content["marks"] = {case: {"mark": "bad", "label": labels[case]} for case in CASES}
    reviewed.write_text(json.dumps(content))
    take_review(place.planned(), "nnUNetTrainer", reviewed)
    with pytest.raises(DatasetError, match="No pseudo-label in .* is left for a training"):
        used(place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"marks": {"scan0": {"mark": "ugly", "label": "x"}}}, "has no marks. Save it with the button"),
        ({"marks": []}, "has no marks"),
        ({"model": "nnUNetTrainer__nnUNetPlans__2d"}, "is of Dataset901_Balls, nnUNetTrainer__nnUNetPlans__2d, not of"),
        ({"dataset": "Dataset001_Other"}, "is of Dataset001_Other"),
        ({"fold": 1}, "is of fold 1, which has no pseudo-labels"),
        ({"marks": {"scan_0": {"mark": "bad", "label": "x"}}}, r"'scan_0' \(nearest: 'scan0'\)"),
    ],
)
def test_marks_of_something_else_are_refused(place, reviewed, change, message):
    reviewed.write_text(json.dumps({**json.loads(reviewed.read_text()), **change}))
    with pytest.raises(DatasetError, match=message):
        take_review(place.planned(), "nnUNetTrainer", reviewed)
    assert not (place.labels / "fold_0" / "review.json").exists()
