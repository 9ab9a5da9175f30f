from itertools import product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from medpy.metric import binary
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage import io

from nnunetv2_crossmatch.evaluation.case import METRICS, BadMask, measure, measure_case
from nnunetv2_crossmatch.nnunet.labels import Labels

ONE = Labels(classes={"organ": (1,)}, known=(0, 1), ignore=None)
SPACING = (3.0, 0.5, 0.7)  # z, y, x


def write(file: Path, mask: np.ndarray, spacing=SPACING) -> Path:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(file))
    return file


def random_masks(shape=(5, 12, 10), labels=3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    reference = rng.integers(0, labels, shape)
    return reference, np.where(rng.random(shape) < 0.7, reference, rng.integers(0, labels, shape))


def by_hand(prediction: np.ndarray, reference: np.ndarray, spacing: np.ndarray) -> tuple[list[float], bool]:
    """Everything of :func:`measure` from its definition, voxel by voxel."""
    p, r = ({tuple(i) for i in np.argwhere(mask).tolist()} for mask in (prediction, reference))
    if not p and not r:
        return [np.nan] * 6, False
    diagonals = [
        sum((n * s) ** 2 for n, s in zip(prediction.shape, unit, strict=True)) ** 0.5
        for unit in ((1,) * prediction.ndim, spacing)
    ]
    if not p or not r:
        return [0, 0, diagonals[0], diagonals[0], diagonals[1], diagonals[1]], True
    steps = [
        tuple(s * int(i == axis) for i in range(prediction.ndim)) for axis in range(prediction.ndim) for s in (-1, 1)
    ]
    edges = [
        [v for v in mask if any(tuple(a + b for a, b in zip(v, step, strict=True)) not in mask for step in steps)]
        for mask in (p, r)
    ]
    values = [2 * len(p & r) / (len(p) + len(r)), len(p & r) / len(p | r)]
    for unit in (np.ones(prediction.ndim), spacing):
        gaps = np.array([[np.linalg.norm((np.array(a) - b) * unit) for b in edges[1]] for a in edges[0]])
        values += [np.percentile([*gaps.min(1), *gaps.min(0)], 95), gaps.min(1).mean()]
    return values, False


@pytest.mark.parametrize(("found", "there_is"), list(product([0, 0.01, 0.5], repeat=2)))
def test_a_pair_of_masks_is_measured_as_by_hand_empty_or_not(found, there_is):
    rng = np.random.default_rng(1)
    prediction, reference = (rng.random((3, 6, 5)) < share for share in (found, there_is))
    values, *seen = measure(prediction, reference, np.array(SPACING))
    expected, expected_missed = by_hand(prediction, reference, np.array(SPACING))
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert seen == [prediction.any(), reference.any()] and expected_missed == (seen[0] != seen[1])


def test_a_missed_organ_is_farther_off_than_any_found_one():
    corners = np.zeros((2, 4, 5, 6), dtype=bool)
    corners[0, 0, 0, 0] = corners[1, -1, -1, -1] = True
    worst, *_ = measure(*corners, np.array(SPACING))
    missed, *_ = measure(np.zeros_like(corners[0]), corners[1], np.array(SPACING))
    assert all(np.array(worst[2:]) < missed[2:])


def test_spacing_belongs_to_the_axes_of_the_file(tmp_path):
    reference, prediction = random_masks(labels=2)
    files = write(tmp_path / "r.nii.gz", reference), write(tmp_path / "p.nii.gz", prediction)
    measured = measure_case(*files, SimpleITKIO(), ONE)
    values, missed = measured.values, measured.missed
    assert dict(zip(METRICS, values[0], strict=True)) == {
        "dice": binary.dc(prediction, reference),
        "jaccard": binary.jc(prediction, reference),
        "hd95_voxels": binary.hd95(prediction, reference),
        "asd_voxels": binary.asd(prediction, reference),
        "hd95_mm": pytest.approx(binary.hd95(prediction, reference, SPACING)),
        "asd_mm": pytest.approx(binary.asd(prediction, reference, SPACING)),
    }
    assert not missed.any()


@pytest.mark.parametrize("kind", ["png", "2D NIfTI"])
def test_a_2d_image_is_measured_in_its_plane(tmp_path, kind):
    reference, prediction = random_masks((14, 17), labels=2)
    files = [tmp_path / f"{name}.{'png' if kind == 'png' else 'nii.gz'}" for name in ("r", "p")]
    spacing = (1.0, 1.0) if kind == "png" else (0.5, 0.7)
    for file, mask in zip(files, (reference, prediction), strict=True):
        if kind == "png":
            io.imsave(file, mask.astype(np.uint8), check_contrast=False)
        else:
            write(file, mask, spacing)
    reader = NaturalImage2DIO() if kind == "png" else SimpleITKIO()
    values = measure_case(*files, reader, ONE).values
    assert values[0, 2:].tolist() == pytest.approx(
        [
            binary.hd95(prediction, reference),
            binary.asd(prediction, reference),
            binary.hd95(prediction, reference, spacing),
            binary.asd(prediction, reference, spacing),
        ]
    )


def test_regions_and_ignored_voxels_are_nnunets(tmp_path):
    reference, prediction = random_masks(labels=3)
    reference[:2] = 3
    files = write(tmp_path / "r.nii.gz", reference), write(tmp_path / "p.nii.gz", prediction)
    labels = Labels(classes={"whole": (1, 2), "core": (2,)}, known=(0, 1, 2), ignore=3)
    values = measure_case(*files, SimpleITKIO(), labels).values
    stock = compute_metrics(str(files[0]), str(files[1]), SimpleITKIO(), [(1, 2), 2], 3)["metrics"]
    assert values[:, :2].tolist() == [[stock[r]["Dice"], stock[r]["IoU"]] for r in ((1, 2), 2)]


def test_ignored_voxels_count_in_no_distance_and_find_nothing(tmp_path):
    reference, prediction = np.zeros((2, 4, 9, 9), dtype=int)
    reference[:, 2:5, 2:5] = prediction[:, 2:5, 2:5] = 1
    prediction[:, 8, 8] = 1  # far off, where nobody has drawn
    reference[:, 7:] = 2
    files = write(tmp_path / "r.nii.gz", reference), write(tmp_path / "p.nii.gz", prediction)
    values = measure_case(*files, SimpleITKIO(), Labels({"organ": (1,)}, (0, 1), ignore=2)).values
    assert values.tolist() == [[1, 1, 0, 0, 0, 0]]
    reference[:, 2:5, 2:5] = prediction[:, 2:5, 2:5] = 0
    files = write(tmp_path / "r.nii.gz", reference), write(tmp_path / "p.nii.gz", prediction)
    measured = measure_case(*files, SimpleITKIO(), Labels({"organ": (1,)}, (0, 1), ignore=2))
    values, missed = measured.values, measured.missed
    assert np.isnan(values).all() and not missed.any()


def test_the_scans_spacing_counts_whatever_the_masks_say(tmp_path):
    reference, prediction = random_masks(labels=2)
    right = measure_case(
        write(tmp_path / "r.nii.gz", reference), write(tmp_path / "p.nii.gz", prediction), SimpleITKIO(), ONE
    )
    assert right.odd == {}
    odd = write(tmp_path / "odd.nii.gz", reference, (1.0, 1.0, 1.0))
    of_prediction = measure_case(odd, tmp_path / "p.nii.gz", SimpleITKIO(), ONE)
    np.testing.assert_array_equal(of_prediction.values, right.values)
    assert of_prediction.odd == {odd: "1 x 1 x 1 mm (z, y, x), the prediction 3 x 0.5 x 0.7"}
    scan = write(tmp_path / "scan.nii.gz", np.ones(reference.shape))
    bare = write(tmp_path / "bare.nii.gz", prediction, (1.0, 1.0, 1.0))
    of_scan = measure_case(odd, bare, SimpleITKIO(), ONE, scan)
    np.testing.assert_array_equal(of_scan.values, right.values)
    assert list(of_scan.odd) == [odd, bare]
    rounded = write(tmp_path / "rounded.nii.gz", reference, (3.0000001, 0.5, 0.7))
    assert measure_case(rounded, tmp_path / "p.nii.gz", SimpleITKIO(), ONE).odd == {}


def test_a_reference_that_lies_elsewhere_than_the_prediction_is_named(tmp_path):
    reference, prediction = random_masks(labels=2)
    predicted = write(tmp_path / "p.nii.gz", prediction)
    right = measure_case(write(tmp_path / "r.nii.gz", reference), predicted, SimpleITKIO(), ONE)
    for name, change, said in (
        ("moved", lambda mask: mask.SetOrigin((5, 0, 0)), "another origin than the prediction"),
        (
            "turned",
            lambda mask: mask.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1)),
            "another orientation than the prediction",
        ),
        (
            "both",
            lambda mask: (mask.SetSpacing((1, 1, 1)), mask.SetOrigin((5, 0, 0))),
            "3 x 0.5 x 0.7, another origin than the prediction",
        ),
        ("nearly", lambda mask: mask.SetOrigin((0.01, 0, 0)), None),
    ):
        mask = sitk.ReadImage(str(tmp_path / "r.nii.gz"))
        change(mask)
        file = tmp_path / f"{name}.nii.gz"
        sitk.WriteImage(mask, str(file))
        measured = measure_case(file, predicted, SimpleITKIO(), ONE)
        np.testing.assert_array_equal(measured.values, right.values)
        assert [what.endswith(str(said)) for what in measured.odd.values()] == [True] * (said is not None), name


def test_a_tiff_mask_without_its_spacing_file_is_measured_with_the_predictions(tmp_path):
    reference, prediction = random_masks(labels=2)
    tifffile.imwrite(tmp_path / "r.tif", reference.astype(np.uint8))
    Tiff3DIO().write_seg(prediction, str(tmp_path / "p.tif"), {"spacing": SPACING})
    measured = measure_case(tmp_path / "r.tif", tmp_path / "p.tif", Tiff3DIO(), ONE)
    files = write(tmp_path / "r.nii.gz", reference), write(tmp_path / "p.nii.gz", prediction)
    np.testing.assert_allclose(measured.values, measure_case(*files, SimpleITKIO(), ONE).values)
    assert measured.odd == {}


def test_what_the_reference_has_is_known_from_what_was_missed(tmp_path):
    empty, full = (
        write(tmp_path / f"{name}.nii.gz", np.full((2, 3, 4), i)) for i, name in enumerate(("empty", "full"))
    )
    for pair, missed, in_reference in (((full, empty), True, True), ((empty, full), True, False)):
        measured = measure_case(*pair, SimpleITKIO(), ONE)
        assert (measured.missed.tolist(), measured.in_reference.tolist()) == ([missed], [in_reference])


def test_values_that_are_nearly_integers_are_meant_as_such(tmp_path):
    reference, prediction = random_masks(labels=2)
    files = write(tmp_path / "r.nii.gz", reference), write(tmp_path / "p.nii.gz", prediction)
    nearly = sitk.GetImageFromArray(reference * np.float32(0.99999994))
    nearly.SetSpacing(SPACING[::-1])
    sitk.WriteImage(nearly, str(tmp_path / "nearly.nii.gz"))
    right = measure_case(*files, SimpleITKIO(), ONE).values
    np.testing.assert_array_equal(measure_case(tmp_path / "nearly.nii.gz", files[1], SimpleITKIO(), ONE).values, right)


def test_bad_masks_are_named_with_what_is_wrong(tmp_path):
    good = np.zeros((3, 4, 5), dtype=int)
    reference = write(tmp_path / "reference.nii.gz", good)
    small = write(tmp_path / "small.nii.gz", good[:2])
    with pytest.raises(BadMask, match=r"small.nii.gz has 2x4x5 .* reference .*reference.nii.gz 3x4x5"):
        measure_case(reference, small, SimpleITKIO(), ONE)
    strange = write(tmp_path / "strange.nii.gz", good + 255)
    with pytest.raises(BadMask, match=r"strange.nii.gz holds \[255.0\], but dataset.json has the labels \[0, 1\]"):
        measure_case(strange, reference, SimpleITKIO(), ONE)
    ignored = write(tmp_path / "ignored.nii.gz", good + 2)
    with pytest.raises(BadMask, match=r"ignored.nii.gz holds \[2.0\]"):  # nnU-Net never predicts the ignore label
        measure_case(ignored, ignored, SimpleITKIO(), Labels({"organ": (1,)}, (0, 1), ignore=2))
    (tmp_path / "torn.nii.gz").write_bytes(reference.read_bytes()[:40])
    with pytest.raises(BadMask, match=r"torn.nii.gz cannot be read"):
        measure_case(reference, tmp_path / "torn.nii.gz", SimpleITKIO(), ONE)
    io.imsave(tmp_path / "rgb.png", np.zeros((4, 5, 3), dtype=np.uint8), check_contrast=False)
    with pytest.raises(BadMask, match=r"rgb.png has 3 channels"):
        measure_case(tmp_path / "rgb.png", tmp_path / "rgb.png", NaturalImage2DIO(), ONE)
