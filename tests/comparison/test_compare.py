"""The command on trainings of which only the traces are there: masks, logs, records."""

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy import ndimage

import nnunetv2_crossmatch as cm
from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.comparison import report
from nnunetv2_crossmatch.evaluation import evaluate
from nnunetv2_crossmatch.nnunet.training_log import CURVES
from tests.comparison.conftest import finished
from tests.conftest import BROWSER, ball, write_image
from tests.nnunet.conftest import epoch

pytestmark = pytest.mark.slow

DATASET = "Dataset902_Folds"
STOCK, OURS = "nnUNetTrainer", "nnUNetTrainerCrossMatch"
PAGE = f"comparison__{STOCK}_vs_{OURS}__nnUNetPlans__3d_fullres__folds_0_1"


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Path:
    """Eight cases in two folds; ours is perfect but for a few voxels of case7, stock loses a rim of all the others."""
    raw, preprocessed, results = (tmp_path / name / DATASET for name in ("raw", "preprocessed", "results"))
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    dataset = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "shell": 1, "core": 2},
        "numTraining": 8,
        "file_ending": ".nii.gz",
    }
    raw.mkdir(parents=True)
    (raw / "dataset.json").write_text(json.dumps(dataset))
    cases = [f"case{i}" for i in range(8)]
    folds = [{"train": cases[4:], "val": cases[:4]}, {"train": cases[:4], "val": cases[4:]}]
    preprocessed.mkdir(parents=True)
    (preprocessed / "splits_final.json").write_text(json.dumps(folds))
    rng = np.random.default_rng(0)
    labels = {}
    for case in cases:
        (image,), labels[case] = ball(rng)
        write_image(image, raw / "imagesTr" / f"{case}_0000.nii.gz")
        for folder in (raw / "labelsTr", preprocessed / "gt_segmentations"):
            write_image(labels[case], folder / f"{case}.nii.gz")
    for trainer, seconds in ((STOCK, 360), (OURS, 720)):
        for fold in (0, 1):
            lines = ["This split has 4 training and 4 validation cases."]
            for number in range(3):
                curve = CURVES + '{"pseudo_label_dice": 0.5}' if trainer == OURS else ""
                lines += epoch(number, 0.1 * number, seconds, curve)
            own = {"resources": {"peak_memory_bytes": 3 * 2**30, "device": "H200", "processes": 1}}
            own["method"] = {"method": "CrossMatch", "threshold": 0.95}
            own["training"] = {
                "labeled": folds[fold]["train"],
                "validation": folds[fold]["val"],
                "unlabeled": {"scan": "abc"},
                "versions": {"torch": "2.1"},
            }
            model = results / f"{trainer}__nnUNetPlans__3d_fullres"
            folder = finished(model, fold, *lines, **(own if trainer == OURS else {}))
            for case in folds[fold]["val"]:
                mask = labels[case].copy()
                if trainer == STOCK and case != "case7":
                    mask *= ndimage.binary_erosion(mask > 0)
                elif trainer == OURS and case == "case7":
                    mask[tuple(np.argwhere(mask == 1)[:20].T)] = 0
                write_image(mask, folder / "validation" / f"{case}.nii.gz")
            (folder / "validation" / "summary.json").touch()
            plans = {"configurations": {"3d_fullres": {"patch_size": [8, 16, 16], "architecture": {}}}}
            (model / "plans.json").write_text(json.dumps(plans))
    return tmp_path


def compare(*more: str) -> None:
    main(["compare", "-d", "902", "-c", "3d_fullres", "-tr", STOCK, OURS, "-np", "1", *more])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_another_spacing_in_a_reference_is_a_warning_and_changes_no_number(trained):
    def compared() -> dict:
        compare()
        file = trained / "results" / DATASET / f"{PAGE}.json"
        return json.loads(file.read_text())

    right = compared()
    references = trained / "preprocessed" / DATASET / "gt_segmentations"
    for case in ("case1", "case6"):
        mask = sitk.ReadImage(str(references / f"{case}.nii.gz"))
        mask.SetSpacing((0.8, 0.8, 2.5))
        sitk.WriteImage(mask, str(references / f"{case}.nii.gz"))
    odd = compared()
    assert odd["differences"] == right["differences"] and odd["dice"] == right["dice"]
    (added,) = [line for line in odd["warnings"] if line not in right["warnings"]]
    assert added.startswith(f"2 masks in {references} have an odd header: case1.nii.gz (")
    assert "case6.nii.gz (2.5 x 0.8 x 0.8 mm (z, y, x), the prediction 1 x 1 x 1)" in added


def test_the_verdict_and_the_numbers_are_those_of_the_masks(trained, capsys):
    compare()
    printed = capsys.readouterr().out
    results = trained / "results" / DATASET
    found = json.loads((results / f"{PAGE}.json").read_text())
    changes = []
    for i in range(8):
        masks = [
            sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
            for file in (
                trained / "raw" / DATASET / "labelsTr" / f"case{i}.nii.gz",
                *(
                    results / f"{t}__nnUNetPlans__3d_fullres" / f"fold_{i // 4}" / "validation" / f"case{i}.nii.gz"
                    for t in (STOCK, OURS)
                ),
            )
        ]
        scores = [[dice(mask == c, masks[0] == c) for c in (1, 2)] for mask in masks[1:]]
        assert list(found["dice"][OURS][f"case{i}"].values()) == pytest.approx(scores[1])
        changes.append(np.mean(scores[1]) - np.mean(scores[0]))
    difference = found["differences"][OURS]["mean of classes"]["dice"]
    assert difference["mean"] == pytest.approx(np.mean(changes))
    assert (
        (difference["wins"], difference["losses"])
        == (7, 1)
        == (sum(c > 0 for c in changes), sum(c < 0 for c in changes))
    )
    assert (
        asdict(cm.compare(902, "3d_fullres", [STOCK, OURS], num_processes=1).verdicts[OURS]) == found["verdicts"][OURS]
    )
    assert found["costs"][STOCK] == {"gpu_hours": pytest.approx(0.6), "peak_memory_bytes": None}
    assert found["costs"][OURS] == {"gpu_hours": pytest.approx(1.2), "peak_memory_bytes": 3 * 2**30}
    assert found["verdicts"][OURS]["sentence"] in printed and "7 of 8 cases better, 1 worse" in printed
    assert "1.20 hours on H200, peak memory 3.0 GiB" in printed and "not recorded" in printed


def test_seeds_are_averaged_and_their_spread_is_beside_the_difference(trained, capsys):
    """Stock's second seed is perfect; ours is the same twice."""
    results = trained / "results" / DATASET
    for trainer in (STOCK, OURS):
        other = results / f"{trainer}__nnUNetPlans_seed2__3d_fullres"
        shutil.copytree(results / f"{trainer}__nnUNetPlans__3d_fullres", other)
        for mask in other.glob("fold_*/validation/*.nii.gz") if trainer == STOCK else ():
            shutil.copy(trained / "raw" / DATASET / "labelsTr" / mask.name, mask)
    compare()
    one = json.loads((results / f"{PAGE}.json").read_text())
    assert "trainings of the same trainer" not in capsys.readouterr().out
    compare("--seeds", "2")
    printed = capsys.readouterr().out
    two = json.loads((results / f"{PAGE}__seeds_2.json").read_text())
    for case, dices in one["dice"][STOCK].items():
        mean = {name: (value + 1) / 2 for name, value in dices.items()}
        assert two["dice"][STOCK][case] == pytest.approx(mean)
    assert two["dice"][OURS] == one["dice"][OURS] and two["costs"] == one["costs"]
    first = one["dice_of_seeds"][STOCK][0]
    assert two["dice_of_seeds"][STOCK] == pytest.approx([first, 1.0])
    page = Page(results / f"{PAGE}__seeds_2.html").text
    for shown in (printed, page, two["verdicts"][OURS]["sentence"]):
        assert "Over 2 seeds the difference is " in shown
    assert re.search(rf"{STOCK} +{100 * first:.1f} +100.0 +{100 - 100 * first:.1f}\n", printed)
    assert "nnUNetv2_train Dataset902_Folds 3d_fullres 1 -tr nnUNetTrainer -p nnUNetPlans_seed2" in page
    (results / f"{OURS}__nnUNetPlans_seed2__3d_fullres" / "fold_1" / "checkpoint_final.pth").unlink()
    err = refused(capsys, "--seeds", "2")
    assert "nnUNetPlans_seed2__3d_fullres/fold_1" in err and f"-tr {STOCK} {OURS} --seeds 2 -f 0 1" in err


def test_one_fold_has_its_own_page_with_dots_no_interval_and_the_last_rows_folded(trained, capsys, monkeypatch):
    monkeypatch.setattr(report, "UNFOLDED", 4)
    compare("-f", "0")
    assert "4 cases are too few" in capsys.readouterr().out
    page = trained / "results" / DATASET / f"{PAGE.removesuffix('_1')}.html"
    text = page.read_text()
    folded = re.findall(r"<details>.*?</details>", text, re.DOTALL)
    assert "1 more class<" in folded[0] and re.findall(r'colspan="8">(\w+)', folded[0]) == ["core"]
    assert "too few for an interval" in text and not [
        cell for cell in re.findall(r"<td>(.*?)</td>", text) if " to " in cell
    ]
    differences = json.loads(page.with_suffix(".json").read_text())["differences"][OURS]["shell"]["dice"]
    assert differences["low"] is None and differences["median"] > 0


def test_other_plans_are_warned_of(trained, capsys):
    plans = trained / "results" / DATASET / f"{OURS}__nnUNetPlans__3d_fullres" / "plans.json"
    plans.write_text(plans.read_text().replace("16", "32"))
    compare()
    assert "other plans than nnUNetTrainer fold 0: patch_size." in capsys.readouterr().out


def test_scans_of_a_patient_are_drawn_together(trained, capsys):
    patients = {f"case{i}": f"p{i // 4}" for i in range(8)}
    (trained / "raw" / DATASET / "patients.json").write_text(json.dumps(patients))
    compare()
    assert "2 patients are too few" in capsys.readouterr().out


def refused(capsys, *more: str) -> str:
    with pytest.raises(SystemExit) as end:
        compare(*more)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_runs_that_cannot_be_compared_are_named(trained, capsys):
    ours = trained / "results" / DATASET / f"{OURS}__nnUNetPlans__3d_fullres"
    assert "Fold all validates the cases that it was trained on" in refused(capsys, "-f", "all")
    assert "labelsTs is missing" in refused(capsys, "--test")
    mask = ours / "fold_1" / "validation" / "case5.nii.gz"
    moved = mask.rename(mask.with_name("case0.nii.gz"))  # one that it learned from counts for nothing
    assert re.search(rf"{mask.parent} has no prediction for 1 of \d masks in .*: case5\.", refused(capsys))
    moved.rename(mask)
    record = ours / "fold_1" / "training.json"
    content = record.read_text()
    record.write_text(content.replace("case5", "case9"))
    assert re.search(r"fold_1 validates other .*only one of them has case5, case9", refused(capsys))
    record.write_text(content)
    summary = ours / "fold_1" / "validation" / "summary.json"
    summary.unlink()
    assert re.search(r"fold_1 was not validated.*3d_fullres 1 -tr nnUNetTrainerCrossMatch .*--val", refused(capsys))
    (ours / "fold_0" / "checkpoint_final.pth").unlink()
    assert "fold_0/checkpoint_final.pth is missing: nnUNetv2_train" in refused(capsys)
    summary.touch()
    with (ours / "fold_1" / "training_log_1.txt").open("a") as log:
        log.write("2026-01-01 00:00:00.000000: Epoch 3 \n")  # trained on since
    assert "fold_1 was not validated after its training" in refused(capsys, "-f", "1")


class Page(HTMLParser):
    def __init__(self, file: Path):
        super().__init__()
        self.links, self.images, self.text = [], 0, ""
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.images += tag == "img"
        if tag in ("script", "link", "iframe"):
            self.links.append(tag)
        self.links += [
            value
            for name, value in named.items()
            if name in ("src", "href", "xlink:href") and not value.startswith(("#", "data:"))
        ]

    def handle_data(self, data):
        self.text += data


def test_the_page_has_everything_inside_and_shows_the_harmed_case(trained, monkeypatch):
    compare("-o", str(trained / "page" / "report.html"))
    page = Page(trained / "page" / "report.html")
    assert not page.links
    assert page.images == 6  # the five most improved, and the one that was harmed
    assert "case7: -" in page.text and page.text.count(": +") >= 5 and page.text.count("(slice ") == 6
    for part in ("7 of 8 cases better", "Quality of the pseudo-labels", "threshold 0.95", "3.0 GiB", "nnUNetv2_train"):
        assert part in page.text
    assert json.loads((trained / "page" / "report.json").read_text())["reference"] == STOCK
    assert "95HD [mm]" in page.text
    monkeypatch.setattr(evaluate, "NaturalImage2DIO", SimpleITKIO)  # as if these were photographs
    compare("-o", str(trained / "page" / "photographs.html"))
    assert "95HD [pixels]" in Page(trained / "page" / "photographs.html").text


@pytest.mark.browser
def test_a_browser_shows_the_page_without_a_word_of_complaint(trained, tmp_path):
    page = tmp_path / "report.html"
    compare("-o", str(page))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--log-level=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    shot = tmp_path / "shot.png"
    shown = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "7 of 8 cases better" in shown.stdout and shown.stdout.count("<svg") == 5
    assert "CONSOLE" not in shown.stderr, shown.stderr
    subprocess.run(
        [*command, f"--screenshot={shot}", "--window-size=1100,2500", page.as_uri()],
        check=True,
        timeout=120,
        capture_output=True,
    )
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(shot)))[..., :3]
    rows = [picture[int(a * 2500) : int((a + 0.25) * 2500)] for a in (0, 0.25, 0.5, 0.75)]
    assert all(row.std() > 5 for row in rows), "a quarter of the page is blank"
