import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_crossmatch.preprocessing.check import check_dataset
from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.self_training import again, annotated
from nnunetv2_crossmatch.self_training.again import commands_again
from nnunetv2_crossmatch.self_training.annotated import Annotated, move_annotated
from nnunetv2_crossmatch.self_training.drafts import Drafts, written_by
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.conftest import DATASET, ON_DEVICE, make_raw_dataset, use_folders, write_image

ENTRY = {
    **dict.fromkeys(("trainer", "plans", "configuration", "checkpoint", "model"), "x"),
    **{"fold": 0, "threshold": 0.9, "labels": {}, "validation": [], "versions": {}, "image": []},
    **{"replaced": None, "confident": {}},
}
MARK = {"mark": "bad", "label": "x"}
FOLDS = [{"train": ["case0", "case1"], "val": ["case2"]}, {"train": ["case1", "case2"], "val": ["case0"]}]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Place:
    """Three labeled and four unlabeled scans, masks of two of these beside, pseudo-labels of three."""

    def __init__(self, base: Path):
        self.raw, self.preprocessed = base / "raw" / DATASET, base / "preprocessed" / DATASET
        self.labels = base / "corrected"
        self.pseudo_labels = self.raw / "pseudo_labels" / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"

    def make(self, listed: bool = False, explicit: bool = False) -> None:
        make_raw_dataset(self.raw, labeled=3, unlabeled=4)
        for i in (0, 2):
            self.annotate(f"scan{i}")
        self.preprocessed.mkdir()
        (self.preprocessed / "splits_final.json").write_text(json.dumps(FOLDS))
        if listed:
            scans = self.raw.parents[1] / "scans"
            (self.raw / "imagesUn").rename(scans)
            entries = {f"scan{i}": {"images": [f"../../scans/scan{i}_0000.nii.gz"]} for i in range(4)}
            (self.raw / "unlabeled.json").write_text(json.dumps(entries))
        if explicit:
            named = {
                f"case{i}": {"images": [f"imagesTr/case{i}_0000.nii.gz"], "label": f"labelsTr/case{i}.nii.gz"}
                for i in range(3)
            }
            (self.raw / "dataset.json").write_text(json.dumps({**self.json, "dataset": named}))
            shutil.copy(self.raw / "dataset.json", self.preprocessed)
        for folder in ("pictures", "predictions"):
            (self.pseudo_labels / folder).mkdir(parents=True)
        record = {}
        for i in range(3):
            file = self.pseudo_labels / f"scan{i}.nii.gz"
            file.write_text(f"label {i}")
            (self.pseudo_labels / "pictures" / f"scan{i}.png").touch()
            (self.pseudo_labels / "predictions" / file.name).touch()
            record[f"scan{i}"] = {**ENTRY, "file": sha256(file)}
        (self.pseudo_labels / "pseudo_labels.json").write_text(json.dumps({"cases": record}))
        (self.pseudo_labels / "scan2.nii.gz").write_text("corrected")
        (self.pseudo_labels / "review.json").write_text(json.dumps({f"scan{i}": MARK for i in range(3)}))

    def annotate(self, case: str, shape=(16, 24, 24), value: int = 1, origin: float = 0.0) -> None:
        mask = np.zeros(shape, np.uint8)
        mask[5:9, 5:9, 5:9] = value
        write_image(mask, self.labels / f"{case}.nii.gz")
        if origin:
            image = sitk.ReadImage(str(self.labels / f"{case}.nii.gz"))
            image.SetOrigin((origin, 0, 0))
            sitk.WriteImage(image, str(self.labels / f"{case}.nii.gz"))

    @property
    def json(self) -> dict:
        return json.loads((self.raw / "dataset.json").read_text())

    @property
    def splits(self) -> list:
        return json.loads((self.preprocessed / "splits_final.json").read_text())

    def dataset(self) -> Dataset:
        return Dataset(self.raw, self.preprocessed, self.json)

    def move(self, **options) -> Annotated:
        return move_annotated(self.dataset(), self.labels, 1, **options)

    def tree(self) -> dict[str, str]:
        """Every file with its content; locks aside."""
        base = self.raw.parents[1]
        files = (file for file in base.rglob("*") if file.is_file() and ".lock" not in file.name)
        return {str(file.relative_to(base)): sha256(file) for file in files}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    use_folders(tmp_path, monkeypatch.setenv)
    place = Place(tmp_path)
    place.make()
    return place


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_scans_and_masks_move_and_all_that_names_them_follows(tmp_path, monkeypatch, listed, explicit):
    use_folders(tmp_path, monkeypatch.setenv)
    place = Place(tmp_path)
    place.make(listed, explicit)
    before = place.tree()
    done = place.move()
    assert (done.moved, done.there, done.untouched, done.warnings[:1]) == (["scan0", "scan2"], [], [], done.warnings)
    after = place.tree()
    scans = "scans" if listed else f"raw/{DATASET}/imagesUn"
    for i in (0, 2):
        image = before[f"{scans}/scan{i}_0000.nii.gz"]
        assert after[f"raw/{DATASET}/imagesTr/scan{i}_0000.nii.gz"] == image
        assert (f"{scans}/scan{i}_0000.nii.gz" in after) == listed  # originals stay
        assert after[f"raw/{DATASET}/labelsTr/scan{i}.nii.gz"] == before[f"corrected/scan{i}.nii.gz"]
    assert place.json["numTraining"] == 5
    assert place.splits == [{**fold, "train": [*fold["train"], "scan0", "scan2"]} for fold in FOLDS]
    if listed:
        assert json.loads((place.raw / "unlabeled.json").read_text()).keys() == {"scan1", "scan3"}
    findings = check_dataset(place.dataset(), 1)
    assert (findings.bad, findings.leaks) == ([], [])
    assert findings.content["imagesTr"].keys() == {"case0", "case1", "case2", "scan0", "scan2"}
    assert findings.content["unlabeled"].keys() == {"scan1", "scan3"}
    named = json.loads((place.preprocessed / "dataset.json").read_text()) if explicit else place.json
    assert named == place.json and ("dataset" in named) == explicit
    if explicit:
        assert named["dataset"]["scan0"] == {"images": ["imagesTr/scan0_0000.nii.gz"], "label": "labelsTr/scan0.nii.gz"}
    assert json.loads((place.pseudo_labels / "review.json").read_text()) == {"scan1": MARK}
    record = json.loads((place.pseudo_labels / "pseudo_labels.json").read_text())["cases"]
    assert record.keys() == {"scan1"}
    assert {file.name for file in (place.pseudo_labels / "predictions").iterdir()} == {"scan1.nii.gz", "scan2.nii.gz"}
    left = {file.name for file in place.pseudo_labels.rglob("*.*") if "lock" not in file.name}
    assert left == {
        "pseudo_labels.json",
        "review.json",
        "scan1.nii.gz",
        "scan1.png",
        "scan2.nii.gz",
        "scan2.png",
    }  # 2 was corrected
    assert not (place.raw / ".annotated").exists()

    second = place.move()
    assert (second.moved, second.there) == ([], ["scan0", "scan2"])
    assert {name: sha for name, sha in place.tree().items() if "content.json" not in name} == after


@pytest.mark.slow
@pytest.mark.parametrize("listed", [False, True])
def test_a_kill_at_any_instant_loses_nothing_and_the_same_command_goes_on(tmp_path, monkeypatch, listed):
    """Every call that changes the disk is once the first that is not done."""
    use_folders(tmp_path, monkeypatch.setenv)
    whole = Place(tmp_path / "whole")
    for folder in ("raw", "preprocessed"):
        (tmp_path / "whole" / folder).mkdir(parents=True)
    whole.make(listed)
    images = {sha for name, sha in whole.tree().items() if name.endswith("_0000.nii.gz")}
    untouched = tmp_path / "before"
    shutil.copytree(tmp_path / "whole", untouched)
    whole.move()
    wanted = whole.tree()

    def killed_at(number: int) -> bool:
        """Whether the process was killed; in a process of its own, so that nothing is cleaned up."""
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        calls = 0

        def deadly(function):
            def call(*arguments, **options):
                nonlocal calls
                calls += 1
                if calls == number:
                    os._exit(9)
                return function(*arguments, **options)

            return call

        for owner, name in ((os, "replace"), (shutil, "copy2"), (os, "unlink"), (os, "rmdir")):
            setattr(owner, name, deadly(getattr(owner, name)))
        Path.unlink = deadly(Path.unlink)
        Place(tmp_path / "now").move()
        os._exit(0)

    number, states = 1, set()
    while True:
        shutil.rmtree(tmp_path / "now", ignore_errors=True)
        shutil.copytree(untouched, tmp_path / "now")
        if not killed_at(number):
            break
        now = Place(tmp_path / "now")
        states.add(str(sorted(now.tree().items())))
        assert images <= set(now.tree().values()), number
        now.move()
        assert now.tree() == wanted, number
        number += 1
    assert number > 20 and len(states) > 10, "hardly any step was seen"


def test_what_was_interrupted_is_finished_whatever_masks_are_given_then(place, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(annotated, "_append_to_folds", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        place.move()
    shutil.rmtree(place.labels)
    place.annotate("scan1", value=7)
    with pytest.raises(DatasetError, match="2 scans of a run that was interrupted are labeled now: scan0, scan2"):
        place.move()
    assert place.splits[0]["train"] == ["case0", "case1", "scan0", "scan2"] and place.json["numTraining"] == 5
    place.annotate("scan1")
    assert place.move().moved == ["scan1"] and place.json["numTraining"] == 6


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda place: place.annotate("scan1", (16, 24, 23)), r"1 of 3 masks in .*corrected have another size .*scan1"),
        (lambda place: place.annotate("scan1", value=4), r"have values that dataset.json does not name: scan1 \(4\)"),
        (
            lambda place: place.annotate("scan1", value=3),
            r"^\n1 masks still have voxels marked as not sure \(value 3\): scan1. Paint them, .* prediction in "
            r"predictions/.\nNo scan of .* was moved.$",
        ),
        (lambda place: (place.raw / "patients.json").write_text("[]"), "patients.json is not of the form"),
        (lambda place: (place.preprocessed / "splits_final.json").write_text("{}"), "splits_final.json: it is no list"),
        (lambda place: (place.pseudo_labels / "review.json").write_text("{"), "review.json is not valid JSON"),
        (lambda place: place.annotate("scan1", origin=4), r"1 of 3 .* not lie on their scan: scan1 \(another origin\)"),
        (lambda place: place.annotate("scan9"), r"1 is no unlabeled case .*'scan9' \(nearest: 'scan\d'\)"),
        (lambda place: place.annotate("case1"), "1 of 3 are labeled already, with another mask: case1"),
        (lambda place: (place.labels / "scan1.nii.gz").write_text("?"), "scan1.nii.gz cannot be read"),
        (lambda place: shutil.rmtree(place.labels), "corrected is no folder"),
        (
            lambda place: (place.raw / "labelsTr" / "scan0.nii.gz").write_text("of something else"),
            "labelsTr/scan0.nii.gz is there already, and is of no labeled scan",
        ),
        (
            lambda place: (place.raw / "unlabeled.json").write_text(
                json.dumps({f"scan{i}": {"images": ["labelsTr/../dataset.json"]} for i in (0,)})
            ),
            "1 is no unlabeled case",
        ),
    ],
)  # fmt: skip
def test_one_bad_mask_stops_all_and_nothing_changes(place, spoil, message):
    spoil(place)
    before = place.tree()
    with pytest.raises(DatasetError, match=message):
        place.move()
    assert place.tree() == before


def test_listed_originals_of_another_ending_are_refused(place):
    nrrd = place.raw.parent / "scan0.nrrd"
    sitk.WriteImage(sitk.ReadImage(str(place.raw / "imagesUn" / "scan0_0000.nii.gz")), str(nrrd))
    entries = {"scan0": {"images": [str(nrrd)]}, "scan2": {"images": ["imagesUn/scan2_0000.nii.gz"]}}
    (place.raw / "unlabeled.json").write_text(json.dumps(entries))
    with pytest.raises(DatasetError, match="The files of 1 scans do not end in .nii.gz.*: scan0"):
        place.move()


def test_a_fold_does_not_train_on_the_patients_that_it_validates(place):
    (place.raw / "patients.json").write_text(json.dumps({"scan0": "p", "case2": "p"}))
    assert place.move().apart == {0: ["scan0"]}
    assert place.splits[0]["train"] == ["case0", "case1", "scan2"]
    assert place.splits[1]["train"] == ["case1", "case2", "scan0", "scan2"]
    assert check_dataset(place.dataset(), 1).leaks == []


def test_what_a_model_wrote_is_no_annotation_until_somebody_says_so(place):
    drafts = place.raw / "suggestions" / "model" / "drafts.json"
    drafts.parent.mkdir(parents=True)
    drafts.write_text(json.dumps({"scan0": ["older", sha256(place.labels / "scan0.nii.gz")]}))
    shutil.copy(place.pseudo_labels / "scan1.nii.gz", place.labels)
    assert written_by(place.raw, "scan1", place.labels / "scan1.nii.gz") == [place.pseudo_labels]
    done = place.move()
    assert (done.moved, done.untouched) == (["scan2"], ["scan0", "scan1"])
    (place.labels / "scan1.nii.gz").unlink()
    assert place.move(untouched=True).moved == ["scan0"]


def test_a_tiff_takes_its_spacing_file_along(tmp_path):
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    for file in (scans / "a.tif", scans / "a.json", masks / "x.tif", masks / "x.json"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    found = annotated._targets(tmp_path, "x", [scans / "a.tif"], masks / "x.tif", ".tif")
    assert [str(target.relative_to(tmp_path)) for _, target in found] == [
        "labelsTr/x.json", "labelsTr/x.tif", "imagesTr/x.json", "imagesTr/x_0000.tif",
    ]  # fmt: skip


def test_onto_another_disk_a_file_is_copied_whole(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("a")
    replace = os.replace

    def other_disk(source, target):
        if Path(source).parent == tmp_path:
            raise OSError(18, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", other_disk)
    annotated._move(tmp_path / "a", tmp_path / "there" / "b")
    assert [file.name for file in tmp_path.rglob("*")] == ["there", "b"]
    annotated._move(tmp_path / "a", tmp_path / "there" / "b")
    with pytest.raises(FileNotFoundError, match="not there any more"):
        annotated._move(tmp_path / "a", tmp_path / "there" / "c")


def test_without_plans_planning_comes_first(place):
    assert commands_again(place.dataset()) == [
        "nnUNetv2_plan_and_preprocess -d 901",
        f"nnUNetv2_train 901 3d_fullres 0{ON_DEVICE}",
    ]


@pytest.mark.parametrize("noted", [True, False])
def test_whole_predictions_are_as_written_too(place, noted):
    """Beside labels of earlier versions, which did not note them, as well."""
    whole, record = place.pseudo_labels / "predictions" / "scan0.nii.gz", place.pseudo_labels / "pseudo_labels.json"
    whole.write_text("whole")
    if noted:
        record.write_text(json.dumps({"cases": {"scan0": {**ENTRY, "file": "x", "prediction": sha256(whole)}}}))
    elsewhere = place.labels / "scan0.nii.gz"
    shutil.copy(whole, elsewhere)
    assert written_by(place.raw, "scan0", whole) == written_by(place.raw, "scan0", elsewhere) == [place.pseudo_labels]
    for other in (elsewhere, *([whole] if noted else [])):
        other.write_text("corrected")
        assert written_by(place.raw, "scan0", other) == []


def test_folds_whose_validation_the_masks_tell_of_are_named(place):
    """Fold 0 may train on what its own model wrote."""
    record = {"scan0": {**ENTRY, "file": sha256(place.labels / "scan0.nii.gz")}}
    (place.pseudo_labels / "pseudo_labels.json").write_text(json.dumps({"cases": record}))
    (warning,) = [line for line in place.move(untouched=True).warnings if "nobody changed" in line]
    assert warning.startswith("1 masks are predictions that nobody changed (scan0)")
    assert "the cases which fold 1 validates" in warning


def test_a_correction_saved_while_the_draft_is_predicted_stays(tmp_path):
    drafts = Drafts(tmp_path, ".nii.gz")

    def take(text: str) -> bool:
        (tmp_path / "incoming").mkdir(exist_ok=True)
        (tmp_path / "incoming" / "a.nii.gz").write_text(text)
        return drafts.take("a", tmp_path / "incoming")

    assert take("first") and take("second") and drafts.file("a").read_text() == "second"
    drafts.file("a").write_text("corrected")
    assert not take("third") and drafts.file("a").read_text() == "corrected" and drafts.is_corrected("a")


def test_teachers_train_before_what_learns_from_them(place, monkeypatch):
    monkeypatch.setattr(again, "preprocessed_configurations", lambda dataset: {"nnUNetPlans": ["2d"]})
    results = place.raw.parents[1] / "results" / DATASET
    trainers = ["nnUNetTrainer", "nnUNetTrainerCrossMatchFromStock", "nnUNetTrainerPseudoLabel"]
    trainers += [f"nnUNetTrainerPseudoLabel_round{number}_of_nnUNetTrainer" for number in (1, 2)]
    for trainer in (*trainers, "nnUNetTrainerZ"):
        for fold in (0, 1):
            folder = results / f"{trainer}__nnUNetPlans__2d" / f"fold_{fold}"
            folder.mkdir(parents=True)
            (folder / "checkpoint_final.pth").touch()
    which = f"-d {DATASET} -c 2d -p nnUNetPlans -f 0 1 -tr nnUNetTrainer"
    assert commands_again(place.dataset())[1:] == [
        *(
            f"nnUNetv2_train {DATASET} 2d 0 -tr {trainer} -p nnUNetPlans{ON_DEVICE}      # and fold 1"
            for trainer in ("nnUNetTrainer", "nnUNetTrainerZ", "nnUNetTrainerCrossMatchFromStock")
        ),
        f"nnUNetv2_crossmatch pseudo-label {which}",
        f"nnUNetv2_crossmatch self-train {which} --student nnUNetTrainerPseudoLabel --rounds 2",
    ]
