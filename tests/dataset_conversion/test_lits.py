import numpy as np
import pytest

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.dataset_conversion import lits
from nnunetv2_crossmatch.dataset_conversion.common import write_dataset
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.dataset_conversion.conftest import array, counts, names, round_trip, scan, sha256, unlabeled_list, write


def write_case(folder, number, ending=".nii"):
    image, label = scan(number)
    write(image, folder / f"volume-{number}{ending}")
    write(label, folder / f"segmentation-{number}{ending}")


def test_the_lists():
    assert len(lits.TRAIN) == len(set(lits.TRAIN)) == 100 and set(lits.TRAIN) == set(range(100))
    assert list(lits.TEST) == list(range(100, 131)) and len(lits.TEST) == 31
    assert lits.TRAIN[:10] == (3, 1, 38, 37, 98, 0, 2, 4, 5, 6) and sha256(lits.TRAIN) == "4d4fb6fa2b40044c"


def test_nested_labeled_volumes_in_batches(base, source):
    for number in (3, 1, 38, 37, 98, 0, 57, 99, 100, 130):
        write_case(source / f"Training Batch {1 + (number > 27)}", number)
    for dataset_id, labeled in ((1, 1), (5, 5)):
        folder = write_dataset(lits.convert(source, labeled), dataset_id)
        assert names(folder / "labelsTr") == sorted(f"volume_{number:03d}" for number in lits.TRAIN[:labeled])
    assert unlabeled_list(folder)["volume_057"] == source / "Training Batch 2" / "volume-57.nii"
    assert names(folder / "labelsUn") == ["volume_000", "volume_057", "volume_099"]
    assert names(folder / "labelsTs") == ["volume_100", "volume_130"]
    np.testing.assert_array_equal(array(folder / "labelsUn" / "volume_057.nii.gz"), scan(57)[1])


def test_volumes_whose_spacing_is_lost_are_named(base, source, capsys):
    """As those with the numbers 28 to 47 of the real ones."""
    for number in (3, 1, 28, 29, 57, 100):
        image, label = scan(number)
        spacing = (1.0, 1.0, 1.0) if 28 <= number < 48 else (0.7, 0.7, 1.5)
        write(image, source / f"volume-{number}.nii", spacing)
        write(label, source / f"segmentation-{number}.nii", spacing)
    main(["convert", "lits", str(source), "-d", "7", "--labeled", "2"])
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "bare array" in line]
    assert warning.startswith("warning: 2 of 3 scans in unlabeled have the header of a bare array (1 x 1 x 1 mm, at 0)")
    assert "volume_028, volume_029. Others have 1.5 x 0.7 x 0.7 mm (z, y, x): the spacing was probably lost" in warning


@pytest.mark.slow
def test_round_trip(base, source):
    for number, ending in ((3, ".nii"), (1, ".nii.gz"), (38, ".nii"), (5, ".nii"), (6, ".nii.gz")):
        write_case(source, number, ending)
    _, done = round_trip(lits.convert(source, 3))
    assert done == ["volume_005", "volume_006"]


def test_bad_input(source):
    with pytest.raises(DatasetError, match=r"expected volume-0.nii to .* Found: nothing"):
        lits.convert(source, 1)
    write_case(source, 3)
    write_case(source, 4)
    found = lits.convert(source, 1)
    assert counts(found) == [1, 1, 0, 0]
    absent = {what: {file.name for file in files} for what, files in found.absent.items()}
    assert "volume-0.nii" in absent["unlabeled volumes"] and "volume-130.nii" in absent["test volumes"]
    with pytest.raises(DatasetError, match=r"1 of 2 labeled volumes are missing: .*volume-1.nii"):
        lits.convert(source, 2)
    (source / "segmentation-3.nii").unlink()
    with pytest.raises(DatasetError, match=r"segmentations of labeled volumes are missing: .*segmentation-3.nii"):
        lits.convert(source, 1)
