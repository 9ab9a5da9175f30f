"""Whatever lies among the unlabeled scans, it is named with the reason, beside all else that is wrong."""

import gzip
import json
import os
import re
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.preprocessing.listing import list_unlabeled
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.conftest import DATASET, make_raw_dataset, write_image
from tests.preprocessing.bad_scans import IMAGE, NATURAL, NIBABEL, NO_FILES, SIMPLEITK, TIFF, Maker, nifti, photo, tif

pytestmark = pytest.mark.slow

ODD_NAMES = ("Müller 1.5T_é_肝臓.v2", "a..b", "{case}", "%s [1]", "c'est")


def random_photo(file: Path) -> None:
    photo(np.random.default_rng(3).integers(0, 255, (24, 24), np.uint8))(file)


class Place:
    """A planned dataset without labeled scans, whose unlabeled scans are in ``scans`` and in unlabeled.json."""

    def __init__(self, base: Path):
        self.base, self.raw, self.preprocessed = base, base / "raw" / DATASET, base / "preprocessed" / DATASET
        self.scans = base / "scans"
        self.scans.mkdir()
        self.entries: dict[str, dict] = {}
        for file in (self.raw / "dataset.json", self.preprocessed / "dataset.json"):
            save_json({**load_json(str(file)), "dataset": {}}, str(file))

    def read_by(self, reader: str) -> None:
        plans = self.preprocessed / "nnUNetPlansSmall.json"
        save_json({**load_json(str(plans)), "image_reader_writer": reader}, str(plans))
        for file in (self.raw / "dataset.json", self.preprocessed / "dataset.json"):
            save_json({**load_json(str(file)), "overwrite_image_reader_writer": reader}, str(file))

    def add(self, name: str, make: Maker, case: str | None = None) -> None:
        file = self.scans / name
        files = [file, *(make(file) or [])]
        self.entries[name if case is None else case] = {"images": list(map(str, files))}
        (self.raw / "unlabeled.json").write_text(json.dumps(self.entries))

    def done(self, configuration: str = "3d_fullres") -> list[str]:
        folder = self.preprocessed / f"nnUNetPlans_{configuration}_unlabeled"
        cases = load_json(str(folder / "manifest.json"))["cases"]
        assert all((folder / f"{case}{suffix}").is_file() for case in cases for suffix in (".b2nd", "_seg.b2nd"))
        return sorted(cases)


@pytest.fixture
def place(dataset) -> Place:
    return Place(dataset)


def complaints(capsys, *command: str) -> list[str]:
    """Lines of the one report of a command that fails."""
    with pytest.raises(SystemExit) as end:
        main([*command, "-d", "901", "-np", "1"])
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()


PREPROCESS = ("preprocess", "-p", "nnUNetPlansSmall", "-c")


@pytest.fixture
def little_memory():
    """One GB more than there is now."""
    resource = pytest.importorskip("resource")
    statm, limits = Path("/proc/self/statm"), resource.getrlimit(resource.RLIMIT_AS)
    if statm.exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize(
    ("reader", "corpus", "good", "configuration"),
    [
        (
            "SimpleITKIO",
            {**SIMPLEITK, **NO_FILES},
            {"good.nii.gz": nifti(), "fair.nii": nifti(IMAGE * 2)},
            "3d_fullres",
        ),
        ("NibabelIO", NIBABEL, {"good.nii": nifti()}, "3d_fullres"),
        ("NaturalImage2DIO", NATURAL, {"good.png": random_photo}, "2d"),
        ("Tiff3DIO", TIFF, {"good_0000.tif": tif()}, "3d_fullres"),
    ],
    ids=["SimpleITKIO", "NibabelIO", "NaturalImage2DIO", "Tiff3DIO"],
)
def test_all_are_refused_in_one_report_and_the_good_ones_done(
    place, capsys, little_memory, reader, corpus, good, configuration
):
    place.read_by(reader)
    for i, (name, (_, make)) in enumerate(corpus.items()):
        place.add(name, make, case=f"bad{i}")
    for name, make in good.items():
        place.add(name, make)
    for command in (("check",), (*PREPROCESS, configuration)):
        lines = complaints(capsys, *command)
        for name, (reason, _) in corpus.items():
            of_scan = [line for line in lines if f"{place.scans}/{name}" in line]
            assert len(of_scan) == 1 and re.search(reason, of_scan[0]), (command, name, of_scan)
        assert not [line for line in lines if any(f"{place.scans}/{name}" in line for name in good)]
    assert place.done(configuration) == sorted(good)


@pytest.mark.parametrize(
    "case", ["../../../evil", "..", "a/b", "a\\b", ".hidden", "", "a\nb", "a\0b", "\ud800", "x" * 241]
)
def test_ids_that_cannot_be_file_names(place, capsys, case):
    place.add("good.nii.gz", nifti())
    place.add("other.nii.gz", nifti(IMAGE * 2), case=case)
    for command in (("check",), (*PREPROCESS, "3d_fullres")):
        (line,) = [line for line in complaints(capsys, *command) if f"{place.raw / 'unlabeled.json'}: " in line]
        assert f"{place.raw / 'unlabeled.json'}: the id {case!r} cannot be a file name" in line
    assert place.done() == ["good.nii.gz"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("Scan", "scan"), ("M\u00fcller", "Mu\u0308ller"), ("ÉTÉ", "été"), ("scan", "scan_seg"), ("x_SEG", "X")],
)
def test_ids_whose_files_would_collide(place, capsys, one, other):
    place.add("good.nii.gz", nifti())
    place.add("1.nii.gz", nifti(IMAGE * 2), case=one)
    place.add("2.nii.gz", nifti(IMAGE * 3), case=other)
    for command in (("check",), (*PREPROCESS, "3d_fullres")):
        lines = complaints(capsys, *command)
        same = normalize("NFC", one) == normalize("NFC", other)  # on the screen; then their code points are shown
        said = [ascii(case) if same else repr(case) for case in (one, other)]
        assert any("unlabeled.json" in line and all(case in line for case in said) for line in lines)
    assert place.done() == ["good.nii.gz"]


def test_problems_of_the_list_and_of_the_scans_are_one_report(place, capsys):
    place.add("good.nii.gz", nifti())
    for i, case in enumerate(("a/b", "Scan", "scan", "test0")):
        place.add(f"{i}.nii.gz", nifti(IMAGE * (i + 2)), case=case)
    place.add("gone.nii.gz", lambda file: None)
    place.add("nan.nii.gz", SIMPLEITK["nan.nii.gz"][1])
    place.entries |= {"number": 3, "path": {"images": "scan.nii.gz"}, "paths": {"images": ["x", None]}, "none": None}
    text = json.dumps(place.entries)
    (place.raw / "unlabeled.json").write_text(
        f'{text[:-1]}, "twice": {{"images": ["p"]}}, "twice": {{"images": ["q"]}}, '
        '"inside": {"images": ["p"], "images": ["q"]}}'
    )
    for command in (("check",), (*PREPROCESS, "3d_fullres")):
        report = "\n".join(complaints(capsys, *command))
        for said in (
            "the id 'a/b' cannot be", "'Scan' and 'scan' would have", "test0 is also in",
            "gone.nii.gz', which does not", "nan.nii.gz contains NaN", "entry 'number' is not",
            "entry 'path' is not", "entry 'paths' is not",
            "entry 'none' is not", "'twice' is there more than once", "entry 'inside' is not",
        ):  # fmt: skip
            assert said in report, (command, said)
    assert place.done() == ["good.nii.gz"]


def test_labeled_scans_are_looked_at_although_no_unlabeled_one_can_be_used(place, capsys):
    place.add("gone.nii.gz", lambda file: None)
    labeled = place.raw / "imagesTr" / "case0_0000.nii.gz"
    labeled.write_bytes(b"")
    description = load_json(str(place.raw / "dataset.json"))
    save_json({**description, "dataset": {"case0": {"images": [str(labeled)]}}}, str(place.raw / "dataset.json"))
    report = "\n".join(complaints(capsys, "check"))
    assert "gone.nii.gz', which does not" in report and "case0_0000.nii.gz is empty" in report


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\0", b"null", b"3", b'"a"', b"[]", b"[" * 100000, b'{"a":' * 100000, b"{'a': 1}", b'{"a": NaN}',
        b'{"\xff": 1}', b'{"a": {"images": ["x"]}', b'{"a": 1}{', b'{"a": ' + b"9" * 5000 + b"}",
        gzip.compress(b"{}", mtime=0), b"<html>",
    ],
)  # fmt: skip
def test_a_malformed_list_is_named(place, capsys, text):
    (place.raw / "unlabeled.json").write_bytes(text)
    for command in (("check",), (*PREPROCESS, "3d_fullres")):
        assert str(place.raw / "unlabeled.json") in "\n".join(complaints(capsys, *command))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_list_that_another_system_wrote(place, encoding):
    place.add("é.nii.gz", nifti())
    (place.raw / "unlabeled.json").write_text(json.dumps(place.entries, ensure_ascii=False), encoding=encoding)
    assert list(list_unlabeled(place.raw, load_json(str(place.raw / "dataset.json")))) == ["é.nii.gz"]


@pytest.mark.parametrize("name", ["unlabeled.json", "imagesUn"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda file: file.symlink_to("nowhere"), "is a link to nothing"),
        (lambda file: file.symlink_to("/dev/zero"), "is not a file"),
        (lambda file: os.mkfifo(file), "is not a file"),
    ],
)
def test_no_list_at_all(place, capsys, name, make, reason):
    (place.raw / "imagesUn").rename(place.base / "elsewhere")
    make(place.raw / name)
    assert f"{place.raw / name} {reason}" in "\n".join(complaints(capsys, "check"))


def test_a_spacing_that_only_the_plans_refute(place, capsys):
    place.add("coarse.nii.gz", nifti(pixdim=(1, 9e4, 9e4, 9e4), srow=(9e4, 0, 0, 0, 0, 9e4, 0, 0, 0, 0, 9e4, 0)))
    place.add("thin.nii.gz", nifti(IMAGE[:1]), case="slice")
    place.add(
        "fine.nii.gz",
        nifti(IMAGE * 2, pixdim=(1, 1e-3, 1e-3, 1e-3), srow=(1e-3, 0, 0, 0, 0, 1e-3, 0, 0, 0, 0, 1e-3, 0)),
    )
    place.add("flat.nii.gz", lambda file: write_image(IMAGE[0], file))
    lines = complaints(capsys, *PREPROCESS, "3d_fullres")
    assert sum("flat.nii.gz is a 2D image, but the labeled scans are 3D; nnU-Net would take 999" in it for it in lines)
    for name in ("coarse", "fine"):
        assert any(f"{name}.nii.gz" in line and "would be resampled to " in line for line in lines)
    assert place.done() == ["slice"]


def test_what_was_preprocessed_stays_when_the_list_is_spoiled(place, capsys):
    place.add("one.nii.gz", nifti())
    place.add("two.nii.gz", nifti(IMAGE * 2))
    main([*PREPROCESS, "3d_fullres", "-d", "901", "-np", "1"])
    whole = dict(place.entries)
    place.entries["two.nii.gz"] = {"images": [str(place.scans)]}
    place.add("three.nii.gz", nifti(IMAGE * 3))
    complaints(capsys, *PREPROCESS, "3d_fullres")
    assert place.done() == ["one.nii.gz", "three.nii.gz", "two.nii.gz"]
    (place.raw / "unlabeled.json").write_text(json.dumps(whole))
    main([*PREPROCESS, "3d_fullres", "-d", "901", "-np", "1"])
    assert place.done() == ["one.nii.gz", "two.nii.gz"]


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything in a folder."""
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path in folder.rglob("*") for stat in (os.lstat(path),)}


def test_nothing_is_written_elsewhere_and_nothing_unlisted_is_read(place, capsys):
    (place.base / "outside").mkdir()
    for name, (_, make) in {**SIMPLEITK, **NO_FILES}.items():
        if len(name) < 255:
            make(place.raw / "imagesUn" / name)
    place.add("good.nii.gz", nifti())
    for i, case in enumerate(
        ("../../outside/evil", str(place.base / "outside" / "evil"), "../evil", "..", "a/../../b")
    ):
        place.add(f"{i}.nii.gz", nifti(IMAGE * (i + 2)), case=case)

    def elsewhere() -> dict[str, tuple[int, int]]:
        return {k: v for k, v in tree(place.base.parent).items() if not k.startswith(f"{place.preprocessed}")}

    before = elsewhere()
    for command in (("check",), (*PREPROCESS, "3d_fullres")):
        about = [line for line in complaints(capsys, *command) if "imagesUn" in line]
        assert [line for line in about if "unlabeled.json is there and does not list them" not in line] == []
    assert elsewhere() == before
    assert not [path for path in tree(place.preprocessed) if "evil" in path]


def test_odd_names_are_legal(place):
    for i, case in enumerate(ODD_NAMES):
        place.add(f"{case}_0000.nii.gz", nifti(IMAGE * (i + 1)), case=case)
    linked = place.scans / f"linked_{ODD_NAMES[0]}.nii.gz"
    nifti(IMAGE * 9)(place.base / "origin.nii.gz")
    place.add(linked.name, lambda file: file.symlink_to(place.base / "origin.nii.gz"))
    main([*PREPROCESS, "3d_fullres", "-d", "901", "-np", "1"])
    main(["check", "-d", "901", "-np", "1"])
    assert place.done() == sorted([*ODD_NAMES, linked.name])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=10,
)
ids = st.text(max_size=8) | st.sampled_from(
    ["case0", "CASE0", "scan", "Scan", "scan_seg", "..", "a/b", ".a", "x" * 300]
)
paths = st.text(max_size=8) | st.sampled_from(
    ["imagesUn/scan0_0000.nii.gz", "imagesUn/scan1_0000.nii.gz", "imagesTr/case0_0000.nii.gz", "imagesUn",
     "\0", "$HOME", "imagesUn/../imagesUn/scan0_0000.nii.gz", "x" * 5000, "\ud800", "loop/scan.nii.gz", "/dev/zero"]
)  # fmt: skip
entries = st.dictionaries(
    ids, st.fixed_dictionaries({"images": st.lists(paths, max_size=2) | json_values}) | json_values, max_size=4
)
modestly = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    raw = tmp_path_factory.mktemp("small") / DATASET
    make_raw_dataset(raw, labeled=1, unlabeled=2, test=1)
    (raw / "loop").symlink_to("loop")
    return raw


def list_of(raw: Path, text: bytes) -> dict[str, list[Path]] | None:
    """What the list names, which has to be safe; None if it is refused, which has to be said as it should."""
    (raw / "unlabeled.json").write_bytes(text)
    before = tree(raw.parent)
    listed, refusal = None, ""
    try:
        listed = list_unlabeled(raw, load_json(str(raw / "dataset.json")))
    except DatasetError as e:
        refusal = str(e)
    assert tree(raw.parent) == before
    if listed is None:
        assert str(raw / "unlabeled.json") in refusal
        return None
    assert listed and list(listed) == sorted(listed)
    assert len({case.casefold() for case in listed}) == len(listed)
    for case, files in listed.items():
        assert case not in ("", "case0", "test0") and Path(case).name == case and not case.startswith(".")
        assert case.isprintable() or not any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in case)
        assert files and all(isinstance(file, Path) and file.is_file() for file in files)
    used = [file.resolve() for files in listed.values() for file in files]
    assert len(set(used)) == len(used) and raw / "imagesTr" / "case0_0000.nii.gz" not in used
    return listed


@modestly
@given(json_values)
def test_any_json_is_a_list_or_refused(small, value):
    list_of(small, json.dumps(value).encode())


@modestly
@given(st.binary(max_size=40))
def test_any_bytes_are_a_list_or_refused(small, text):
    list_of(small, text)


@modestly
@given(entries)
def test_nearly_valid_lists_are_lists_or_refused(small, value):
    list_of(small, json.dumps(value).encode())


@modestly
@given(
    st.text(min_size=1, max_size=60, alphabet=st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\"))
)
def test_ids_of_letters_spaces_and_dots_are_legal(small, name):
    case = f"a {name}.v2"
    assert list(list_of(small, json.dumps({case: {"images": ["imagesUn/scan0_0000.nii.gz"]}}).encode())) == [case]
