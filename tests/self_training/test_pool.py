import shutil

import SimpleITK as sitk

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.preprocessing.content import read_content
from tests.conftest import DATASET, make_raw_dataset, use_folders


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
    cases = [part.partition('"')[0] for part in text.split('data-case="')[1:]]
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
