import json

import numpy as np
import pytest
from skimage import io

from nnunetv2_crossmatch.dataset_conversion import isic
from nnunetv2_crossmatch.dataset_conversion.common import listed, write_dataset
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.conftest import REAL
from tests.dataset_conversion.conftest import counts, names, round_trip, sha256, unlabeled_list

TEST = listed("isic_test")
HASHES = {103: "2d14b66b35f6b703", 207: "c7b912e92021d1f8", 415: "c5854a257999b7cd"}


def fill(source, ids):
    """Empty files with the challenge's names: what a conversion lists before it reads any."""
    for folder, name in (("Training_Input", "{}.jpg"), ("GroundTruth", "{}_segmentation.png")):
        (source / folder).mkdir(exist_ok=True)
        for i in ids:
            (source / folder / name.format(i)).touch()


def all_ids() -> list[str]:
    """2594 ids with all published ones among them."""
    known = {i for labeled in isic.PUBLISHED for i in listed(f"isic_labeled_{labeled}")} | set(TEST)
    others = (f"ISIC_{number:07d}" for number in range(20000, 30000))
    return sorted([*known, *(next(others) for _ in range(isic.IMAGES - len(known)))])


def write_case(source, name, shape=(40, 56), mask_name="{}_segmentation.png"):
    rng = np.random.default_rng(int(name[5:]))
    mask = np.zeros(shape, np.uint8)
    mask[10:30, 15:40] = 255
    image = rng.integers(150, 200, (*shape, 3)).astype(np.uint8)
    image[mask > 0] //= 2
    for folder, file, content in (("images", f"{name}.jpg", image), ("masks", mask_name.format(name), mask)):
        (source / folder).mkdir(exist_ok=True)
        io.imsave(source / folder / file, content, check_contrast=False)
    return mask


def test_the_published_lists(source):
    assert len(TEST) == len(set(TEST)) == 519 and sha256(TEST) == "3d2660b145bde979"
    fill(source, all_ids())
    for labeled, expected in HASHES.items():
        ids = listed(f"isic_labeled_{labeled}")
        assert len(ids) == len(set(ids)) == labeled and not set(ids) & set(TEST) and sha256(ids) == expected
        conversion = isic.convert(source, labeled)
        assert counts(conversion) == [labeled, 2075 - labeled, 0, 519]
        assert [case.id for case in conversion.labeled] == ids


def test_another_number_is_drawn_with_a_seed(source):
    fill(source, all_ids())
    fifty = [case.id for case in isic.convert(source, 50).labeled]
    assert sha256(fifty) == "953b18f7b1ee89be"
    assert [case.id for case in isic.convert(source, 20).labeled] == fifty[:20]


def test_more_than_the_training_images(source):
    fill(source, [*all_ids(), "ISIC_0040000"])
    with pytest.raises(DatasetError, match="has 2595 images. Expected: .* without validation or test images"):
        isic.convert(source, 103)


@pytest.mark.parametrize("mask_name", ["{}_segmentation.png", "{}.png"])
def test_rgb_with_jpeg_in_place(base, source, mask_name):
    shapes = {"ISIC_0000000": (40, 56), "ISIC_0000001": (64, 48), "ISIC_0000003": (50, 50), TEST[0]: (33, 47)}
    masks = {name: write_case(source, name, shape, mask_name) for name, shape in shapes.items()}
    folder = write_dataset(isic.convert(source, 2), 18)
    described = json.loads((folder / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "R", "1": "G", "2": "B"} and described["file_ending"] == ".png"
    ((hidden, file),) = unlabeled_list(folder).items()
    assert file == source / "images" / f"{hidden}.jpg" and not (folder / "imagesUn").exists()
    for part, name in (("Tr", names(folder / "labelsTr")[0]), ("Ts", TEST[0]), ("Un", hidden)):
        np.testing.assert_array_equal(io.imread(folder / f"labels{part}" / f"{name}.png"), masks[name] > 0)
        if part != "Un":  # exactly the colors that the reader sees in the originals
            np.testing.assert_array_equal(
                io.imread(folder / f"images{part}" / f"{name}_0000.png"), io.imread(source / "images" / f"{name}.jpg")
            )


@pytest.mark.slow
def test_round_trip(base, source):
    for number, shape in enumerate([(64, 80), (72, 64), (64, 64), (80, 72), (66, 70)]):
        write_case(source, f"ISIC_{20000 + number:07d}", shape)
    _, done = round_trip(isic.convert(source, 3), "2d")
    assert len(done) == 2


def test_bad_input(base, source):
    (source / "photos").mkdir()
    with pytest.raises(DatasetError, match=r"expected ISIC_XXXXXXX.jpg .* Found: photos/"):
        isic.convert(source, 103)
    for name in ("ISIC_0020000", "ISIC_0020001"):
        write_case(source, name)
    with pytest.raises(DatasetError, match=r"103 of 103 labeled images are .*ISIC_0013511.jpg.* and 100 more") as error:
        isic.convert(source, 103)
    assert error.value.problems[-1].endswith("that are here with their masks: at most --labeled 1.")
    for name in ("ISIC_0020000", "ISIC_0020001"):
        io.imsave(source / "images" / f"{name}.jpg", np.zeros((40, 56), np.uint8), check_contrast=False)
    with pytest.raises(DatasetError, match=r"is not an RGB image \(array of shape \(40, 56\)\)"):
        write_dataset(isic.convert(source, 1), 18)
    for file in (source / "masks").iterdir():
        file.unlink()
    for name in ("ISIC_0020002", "ISIC_0020003"):
        write_case(source, name)
    with pytest.raises(DatasetError, match=r"with their masks: at most --labeled 2\."):
        isic.convert(source, 103)
    chosen = isic.convert(source, 2)  # of the four images those that have a mask
    assert {case.id for case in chosen.labeled} == {"ISIC_0020002", "ISIC_0020003"}
    (source / "masks" / "ISIC_0020003_segmentation.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 2 masks of labeled images are missing: .*_segmentation.png"):
        isic.convert(source, 2)


@pytest.mark.real
def test_real_images(base):
    """400 of the 2594, squashed to 256 x 256; 81 of them are test images."""
    folder = write_dataset(isic.convert(REAL / "ISIC2018", 20), 18)
    assert [len(names(folder / part)) for part in ("imagesTr", "labelsTr", "labelsUn", "imagesTs", "labelsTs")] == [
        20,
        20,
        299,
        81,
        81,
    ]
    assert len(unlabeled_list(folder)) == 299
    image = io.imread(next((folder / "imagesTr").iterdir()))
    assert image.shape == (256, 256, 3) and image.dtype == np.uint8
    for file in (folder / "labelsTr").iterdir():
        assert set(np.unique(io.imread(file))) <= {0, 1}
