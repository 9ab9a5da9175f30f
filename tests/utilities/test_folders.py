import os
import re

import pytest

from nnunetv2_crossmatch.utilities.errors import DatasetError, some
from nnunetv2_crossmatch.utilities.folders import read_folder


@pytest.fixture
def folder(tmp_path):
    for name in ("b_0000.nii.gz", "a_0000.nii.gz", "Ä b.nii.gz"):
        (tmp_path / name).touch()
    return tmp_path


def names(folder):
    found = read_folder(folder, ".nii.gz")
    return [f.name for f in found.files], [f.name for f in found.folders], found.left_out


def test_a_clean_folder_leaves_nothing_out(folder):
    for companion in ("a.json", "b_0000.json"):  # of BIDS, or the spacing of a TIFF
        (folder / companion).touch()
    (folder / "c_0000.nii.gz").symlink_to(folder / "a_0000.nii.gz")
    (folder / "gone_0000.nii.gz").symlink_to("nowhere")  # is named when it is to be read
    files = ["a_0000.nii.gz", "b_0000.nii.gz", "c_0000.nii.gz", "gone_0000.nii.gz", "Ä b.nii.gz"]
    assert names(folder) == (files, [], [])


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["c.nii"], [r"1 not used \(c.nii\): they do not end in .nii.gz, .* run: gzip .*/\*.nii"]),
        (["c.mha", "other.json", "noext"], [r"3 not used \(c.mha, noext, other.json\).* Convert or remove"]),
        (["c.NII.GZ", "d.Nii.gz"], [r"2 not used \(c.NII.GZ, d.Nii.gz\).*exactly these letters"]),
        (["c.zip", "d.TAR.GZ"], [r"2 not used \(c.zip, d.TAR.GZ\): they are archives"]),
        ([".c.nii.gz"], [r"1 not used \(.c.nii.gz\): they are hidden"]),
        (["._a.nii.gz", ".DS_Store", "Thumbs.db"], ["3 not used .*of the operating system"]),
        (["c.nii", ".DS_Store"], ["c.nii", "operating system"]),
        ([f"c{i}.nii" for i in range(5)], [r"5 not used \(c0.nii, c1.nii, c2.nii and 2 more\)"]),
    ],
)
def test_every_kind_is_counted_and_named_in_a_line(folder, entries, said):
    for name in entries:
        (folder / name).touch()
    files, _, left_out = names(folder)
    assert len(files) == 3
    assert len(left_out) == len(said)
    for line, pattern in zip(left_out, said, strict=True):
        assert line.startswith(f"{folder}: ") and re.search(pattern, line), line


def test_folders_are_not_looked_into(folder):
    (folder / "p1").mkdir()
    (folder / "p1" / "a.nii").touch()
    (folder / "link").symlink_to(folder / "p1")
    assert names(folder)[1:] == (["link", "p1"], [])


def test_names_that_are_no_text_can_be_printed(tmp_path):
    (tmp_path / os.fsdecode(b"M\xfcller\n.nii")).touch()
    error = DatasetError(read_folder(tmp_path, ".nii.gz").left_out)
    assert r"(M\udcfcller\n.nii)" in str(error)
    assert str(error).encode() and len(error.problems) == 1
    assert some(["a"]) == "a" and some(list("abcd")) == "a, b, c and 1 more"
