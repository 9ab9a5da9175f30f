import csv
import json
import shutil
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.nnunet.loaders import UnlabeledDataset
from nnunetv2_crossmatch.self_training import suggest as module
from nnunetv2_crossmatch.self_training.annotated import move_annotated
from nnunetv2_crossmatch.self_training.choice import score
from nnunetv2_crossmatch.self_training.drafts import written_by
from nnunetv2_crossmatch.self_training.suggest import _odd, pooled_bottleneck, predict_members, suggest
from tests.conftest import ON_DEVICE

CASES = [f"scan{i}" for i in range(4)]


@pytest.mark.parametrize(("patch", "axes"), [((4, 4, 4), (0, 2)), ((4, 4), (0, 1))])
def test_a_mirrored_scans_prediction_is_mirrored_back(patch, axes):
    """The network here adds to each voxel its place, so every member says how the scan lay."""
    data = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float()
    place = torch.arange(3 * 4 * 5).reshape(1, 3, 4, 5) * 1000.0
    predictor = SimpleNamespace(
        list_of_parameters=[{}],
        allowed_mirroring_axes=axes,
        configuration_manager=SimpleNamespace(patch_size=patch),
        predict_logits_from_preprocessed_data=lambda data: data + place,
    )
    members = list(predict_members(predictor, data))
    offset = 3 - len(patch)
    expected = [data + place, *(data + place.flip(1 + offset + axis) for axis in axes)]
    assert len(members) == 3 and all(map(torch.equal, members, expected))
    predictor.allowed_mirroring_axes = None
    with pytest.raises(ValueError, match="Train a second fold"):
        list(predict_members(predictor, data))


def test_the_bottleneck_is_pooled_over_space():
    network = nn.Module()
    network.encoder = nn.Module()
    network.encoder.forward = lambda image: [image, 2 * image]
    network.decoder = nn.Identity()
    image = torch.arange(12.0).reshape(1, 3, 2, 2)
    with pooled_bottleneck(network) as gathered:
        network.encoder(image)
    network.encoder(image)
    assert len(gathered) == 1 and gathered[0].tolist() == [[3, 11, 19]]
    with pytest.raises(ValueError, match="has no encoder"), pooled_bottleneck(nn.Identity()):
        pass


def test_scans_unlike_the_labeled_ones_are_named_with_the_reason():
    usual = {"spacing": [1, 1, 1], "shape": [10, 10, 10], "intensities": [[0, 1, 2, 3, 4]]}
    content = {"imagesTr": {"a": usual}, "unlabeled": {"b": usual, "c": {**usual, "spacing": [9, 1, 1]}}}
    odd = _odd(content, ["b", "c"], ["MR"])
    assert odd.keys() == {"c"} and odd["c"][0].startswith("spacing")
    assert _odd({}, ["b"], ["MR"]) == {}


def call(place, folds=None, count=2, **options):
    device = torch.device("cpu")
    return suggest(place.planned(), "nnUNetTrainer", folds, count, "checkpoint_final.pth", device, 1, **options)


def test_from_two_folds_to_labeled_cases(place, monkeypatch, capsys):
    """Scores by nnU-Net's predictor fold by fold; drafts in the scan's geometry; a second call; then annotated."""
    done = call(place)
    assert "only supported for cuda" not in capsys.readouterr().out  # nnU-Net's, of its default
    segmentations = {}
    for fold in (0, 1):
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
        predictor.initialize_from_trained_model_folder(str(place.model), (fold,))
        dataset = UnlabeledDataset(str(place.planned().unlabeled_folder), CASES)
        for case in CASES:
            logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(dataset.load_case(case)[0][:]))
            segmentations[fold, case] = logits.argmax(0).numpy()
    counts = []
    for operation in (np.logical_xor, np.logical_or):
        of_cases = [
            [
                np.mean([operation(a == c, b == c).sum() for a, b in combinations(members, 2)])
                for c in (1, 2)
            ]
            for members in ([segmentations[fold, case] for fold in (0, 1)] for case in CASES)
        ]  # fmt: skip
        counts.append(of_cases)
    expected = dict(zip(CASES, score(*counts), strict=True))
    first = max(CASES, key=lambda case: expected[case])
    assert next(iter(done.chosen)) == first and len(done.chosen) == 2
    assert all(share == pytest.approx(expected[case]) for case, share in done.chosen.items())
    rows = list(csv.DictReader((done.folder / "suggestions.csv").open()))
    assert [row["case"] for row in rows[:2]] == list(done.chosen) and len(rows) == 4
    assert rows[0].keys() >= {"rank", "disagreement", "shell", "core", "draft"}
    measured = json.loads((done.folder / "measured" / "scan0.json").read_text())
    assert len(measured["features"]) == 8

    draft, scan = (sitk.ReadImage(str(file)) for file in (
        done.drafts / f"{first}.nii.gz", place.raw / "imagesUn" / f"{first}_0000.nii.gz"
    ))  # fmt: skip
    for of in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(draft, of)() == getattr(scan, of)()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(place.model), (0, 1))
    image, properties = predictor.plans_manager.image_reader_writer_class().read_images(
        [str(place.raw / "imagesUn" / f"{first}_0000.nii.gz")]
    )
    assert np.array_equal(sitk.GetArrayFromImage(draft), predictor.predict_single_npy_array(image, properties))
    page = (done.folder / "suggestions.html").read_text()
    assert (
        page.count("data:image/jpeg") == 2 and "<b>the draft" not in page and "radio" not in page.split("<script>")[0]
    )

    corrected = done.drafts / f"{first}.nii.gz"
    other = next(case for case in done.chosen if case != first)
    assert written_by(place.raw, other, done.drafts / f"{other}.nii.gz") == [done.folder]
    array = sitk.GetArrayFromImage(draft)
    array[0] = 0
    array[0, 0, 0] = 1
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(draft)
    sitk.WriteImage(changed, str(corrected))
    before = corrected.read_bytes()
    untouched = (done.drafts / f"{other}.nii.gz").read_bytes()
    small = ["-d", "901", "-np", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "predict_members", None)  # nothing is measured again
        main(["suggest", *small, "-c", "3d_fullres", "-p", "nnUNetPlansSmall", "--scans", "1", "-device", "cpu"])
    printed = capsys.readouterr().out
    assert "(disagreement of the models of folds 0, 1)" in printed and f"  {first}  " in printed
    assert f"1 drafts have been corrected and stay as they are: {first}" in printed
    assert f"Next: nnUNetv2_crossmatch annotated -d Dataset901_Balls {done.drafts}" in printed
    assert [file.name for file in done.drafts.iterdir()] == [corrected.name] and corrected.read_bytes() == before
    (done.drafts / f"{other}.nii.gz").write_bytes(untouched)
    main(["annotated", *small, str(done.drafts)])
    printed = capsys.readouterr().out
    assert f"1 are as the model wrote them and stay unlabeled: {other}" in printed
    assert f"1 scans became labeled ones ({first})" in printed
    assert "nnUNetv2_preprocess -d 901 -plans_name nnUNetPlans -c 2d 3d_fullres\n" in printed
    train = f"nnUNetv2_train Dataset901_Balls 3d_fullres 0 -tr nnUNetTrainer -p nnUNetPlansSmall{ON_DEVICE}"
    assert f"{train}      # and fold 1" in printed


def test_one_model_is_asked_by_mirroring_and_foreign_folds_are_named(place):
    shutil.rmtree(place.model / "fold_1")
    done = call(place)
    assert done.members == "predictions of the mirrored scan by fold 0" and len(done.chosen) == 2
    with pytest.raises(FileNotFoundError, match="fold_1/checkpoint_final.pth is missing"):
        call(place, [0, 1])
    with pytest.raises(ValueError, match="1 or more, not 0"):
        call(place, count=0)


def test_untouched_drafts_stay_and_can_be_taken_when_they_are_right(place, monkeypatch):
    done = call(place, count=1)
    (first,) = done.chosen
    page = (done.folder / "suggestions.html").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(module, "probabilities_in_scan", None)  # nothing is drafted again
        assert call(place, count=1).corrected == []
    assert (done.folder / "suggestions.html").read_bytes() == page
    moved = move_annotated(place.planned().dataset, done.drafts, 1, untouched=True)
    assert moved.moved == [first]
