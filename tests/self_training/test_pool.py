import base64
import json
import shutil
from pathlib import Path

import SimpleITK as sitk

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.preprocessing.content import read_content
from tests.conftest import DATASET, make_raw_dataset, use_folders


def cases_of(page: Path) -> list[str]:
    return [part.partition('"')[0] for part in page.read_text().split('data-case="')[1:]]


def test_check_shows_the_oddest_scans_first_and_one_that_is_moved_away_is_out(tmp_path, monkeypatch, capsys):
    use_folders(tmp_path, monkeypatch.setenv)
    raw, preprocessed = (tmp_path / place / DATASET for place in ("raw", "preprocessed"))
    make_raw_dataset(raw, labeled=4, unlabeled=23, test=1)
    odd = raw / "imagesUn" / "scan7_0000.nii.gz"
    image = sitk.ReadImage(str(odd))
    image.SetSpacing((4.0, 4.0, 4.0))
    sitk.WriteImage(image, str(odd))
    main(["check", "-d", "901", "-np", "1"])
    page = preprocessed / "unlabeled_scans.html"
    assert f"how to leave them out: {page}\n" in capsys.readouterr().out
    text = page.read_text()
    cases = cases_of(page)
    assert cases[0] == "scan7" and len(cases) == 23 and cases[-3:] == ["case0", "case1", "case2"]
    assert (
        "spacing (z, y, x in mm) (4, 4, 4)" in text
        and "doubt" not in text.partition("</style>")[2].split("<script>")[0]
    )
    assert text.count("data:image/jpeg") == 23 and "data:image/svg+xml" in text

    drawn = page.stat().st_mtime_ns
    main(["check", "-d", "901", "-np", "1"])
    assert page.stat().st_mtime_ns == drawn, "nothing has changed"
    (raw / "excluded").mkdir()
    shutil.move(odd, raw / "excluded")
    main(["check", "-d", "901", "-np", "1"])
    assert "scan7" not in page.read_text() and "excluded" in page.read_text()
    assert "scan7" not in read_content(preprocessed)["unlabeled"]


def test_what_cannot_be_drawn_is_left_out(tmp_path, monkeypatch):
    use_folders(tmp_path, monkeypatch.setenv)
    raw, preprocessed = (tmp_path / place / DATASET for place in ("raw", "preprocessed"))
    images = {
        f"{name}{i}": {"images": [f"images{part}/{name}{i}_{c:04d}.nii.gz" for c in range(2)]}
        for part, name in (("Tr", "case"), ("Un", "scan"))
        for i in range(2)
    }
    of_labeled = {case: {**images.pop(case), "label": f"labelsTr/{case}.nii.gz"} for case in ("case0", "case1")}
    make_raw_dataset(raw, labeled=2, unlabeled=2, channels=2, dataset=of_labeled)
    (raw / "unlabeled.json").write_text(json.dumps(images))
    for file in raw.glob("images*/*_0001.nii.gz"):
        sitk.WriteImage(sitk.ReadImage(str(file)) * 0, str(file))
    main(["check", "-d", "901", "-np", "1"])
    page = preprocessed / "unlabeled_scans.html"
    assert set(cases_of(page)) == {"scan0", "scan1", "case0", "case1"}
    picture = base64.b64decode(page.read_text().partition("image/svg+xml;base64,")[2].partition('"')[0]).decode()
    assert picture.count('id="axes_') == 1, "the other channel is 0"

    page.unlink()
    for file in (*raw.glob("*/scan1*"), *raw.glob("*/case1*")):
        file.unlink()  # as on a machine that has not all of them
    main(["check", "-d", "901", "-np", "1"])
    assert cases_of(page) == ["scan0", "case0"]
