import base64
import json
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from nnunetv2_crossmatch.self_training.page import SIZE, Page, Shown, colors, thumbnail, value_names, write_page
from tests.conftest import BROWSER

COLORS = colors([1, 2])


def pixels(uri: str) -> np.ndarray:
    form, _, content = uri.removeprefix("data:image/").partition(";base64,")
    return matplotlib.image.imread(BytesIO(base64.b64decode(content)), format=form)


def page_of(number: int, tmp_path: Path, pictures=None) -> Path:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(20, 30, 40)).astype(np.float32)
    label = np.zeros(image.shape, int)
    label[5:15, 5:15, 5:15] = 1
    drawn = pictures or thumbnail(image, label, label == 1, (1, 1, 1), COLORS)
    shown = [
        Shown(
            f"liver_{i:03d}", 1 - i / number, {"liver": 0.5, "tumor <b>": None}, tmp_path / f"it's {i}.nii.gz",
            tmp_path / f"liver_{i:03d}.nii.gz", drawn, ["corrected by hand"] if i == 1 else [], f"sha{i}",
            "good" if i == 3 else "",
        )
        for i in range(number)
    ]  # fmt: skip
    review = {"dataset": "Dataset042_Liver", "model": "nnUNetTrainer__nnUNetPlans__3d_fullres", "fold": 0}
    odd = {"liver_900": ["spacing (9, 1, 1)."]}
    lines = ["The most doubtful first."]
    page = Page("Pseudo-labels", lines, "sure", {"liver": "cyan"}, "nnUNetv2_crossmatch ...", review, odd)
    write_page(page, shown, tmp_path / "page.html")
    return tmp_path / "page.html"


def test_a_thumbnail_has_three_planes_in_their_proportions_with_outlines_and_shades():
    image, label = np.zeros((10, 20, 40), np.float32), np.zeros((10, 20, 40), int)
    image[:] = np.arange(40)
    label[2:6, 5:15, 10:30] = 2
    ignored = np.zeros(label.shape, bool)
    ignored[4, 16:, :] = True
    gray, overlay = (pixels(uri) for uri in thumbnail(image, label, ignored, (4, 2, 1), COLORS))
    assert gray.shape == (SIZE, 3 * SIZE, 3) and overlay.shape == (SIZE, 3 * SIZE, 4)
    axial = overlay[:, :SIZE]
    assert axial[..., 3].max() == 1 and set(np.unique((255 * axial[..., 3]).round())) == {0, 90, 255}
    red = (axial == (1, 0, 0, 1)).all(-1)  # value 2
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    # 20 rows of 2 mm and 40 columns of 1 mm are square
    assert abs(rows[0] - SIZE * 5 / 20) <= 1 and abs(rows[-1] + 1 - SIZE * 15 / 20) <= 1
    assert abs(columns[0] - SIZE / 4) <= 1 and abs(columns[-1] + 1 - SIZE * 3 / 4) <= 1
    assert not red[rows[0] + 5, columns[0] + 5], "filled, not outlined"
    assert gray[SIZE // 2, 5].max() < 30 < 220 < gray[SIZE // 2, SIZE - 5].min()
    coronal = (overlay[:, SIZE : 2 * SIZE] == (1, 0, 0, 1)).all(-1)  # feet down: slices 2 to 5 of 10 are below
    rows = np.flatnonzero(coronal.any(1))
    assert abs(rows[0] - SIZE * 0.4) <= 1 and abs(rows[-1] + 1 - SIZE * 0.8) <= 1


@pytest.mark.parametrize("shape", [(1, 20, 30), (8, 20, 30), (4, 1, 30)])
def test_2d_images_and_nothing_found_have_thumbnails_too(shape):
    nothing = np.zeros(shape)
    gray, _ = thumbnail(nothing, nothing.astype(int), nothing > 0, (3, 1, 1), COLORS)
    assert pixels(gray).shape == (SIZE, SIZE if shape[0] == 1 else 3 * SIZE, 3)


def test_values_are_called_by_their_classes():
    assert value_names({"background": 0, "shell": 1, "core": 2, "ignore": 3}) == {1: "shell", 2: "core"}
    assert value_names({"background": 0, "whole": [1, 2], "core": [2]}) == {1: "label 1", 2: "core"}


class Links(HTMLParser):
    """What a page would load from elsewhere."""

    def __init__(self, file: Path):
        super().__init__()
        self.found: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href") and not value.startswith("data:")]


def test_the_page_has_everything_inside_and_opens_each_scan(tmp_path):
    page = page_of(3, tmp_path)
    text = page.read_text()
    assert not Links(page).found
    assert "tumor &lt;b&gt; none" in text and "liver 50 %" in text and "liver_900" in text
    scan = Shown("a", 0, {}, tmp_path / "it's.nii.gz", tmp_path / "a b.nii.gz", ("", ""))
    for program, command in scan.commands.items():
        # what a shell makes of the command
        split = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True).stdout
        assert str(tmp_path / "it's.nii.gz") in split and str(tmp_path / "a b.nii.gz") in split, program


@pytest.mark.slow
def test_300_scans_are_small(tmp_path):
    """Noise compresses worst: real scans are smaller."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (64, 128, 128)) * (rng.uniform(size=(64, 128, 128)) > 0.9)
    pictures = thumbnail(rng.normal(size=label.shape), label, label == 2, (3, 1, 1), COLORS)
    size = page_of(300, tmp_path, pictures).stat().st_size
    assert 10_000_000 < size < 60_000_000


SCRIPT = """
window.addEventListener("load", () => {
  const scans = [...document.querySelectorAll(".scan")], out = {};
  const visible = () => scans.filter(s => s.style.display !== "none").map(s => s.dataset.case);
  const box = document.getElementById("filter");
  const filter = text => { box.value = text; box.dispatchEvent(new Event("input")); };
  out.all = visible().length;
  filter("good"); out.saved = visible();
  scans[3].querySelector(".clear").click();
  filter("CORRECTED"); out.corrected = visible();
  scans[0].querySelector("input[value=bad]").click();
  scans[2].querySelector("input[value='to correct']").click();
  scans[1].querySelector("input[value=good]").click();
  scans[1].querySelector(".clear").click();
  filter("bad"); out.bad = visible();
  filter("unmarked"); out.unmarked = visible();
  filter(""); out.count = document.getElementById("count").textContent;
  const made = [];
  URL.createObjectURL = blob => { made.push(blob); return "#"; };
  HTMLAnchorElement.prototype.click = function() { out.name = this.download; };
  document.getElementById("save").click();
  out.kept = localStorage.length;
  document.getElementById("outlines").click();
  out.plain = getComputedStyle(scans[0].querySelectorAll("img")[1]).display;
  out.loaded = scans[0].querySelector("img").naturalWidth;
  made[0].text().then(text => {
    out.json = JSON.parse(text);
    const p = document.createElement("pre"); p.id = "out"; p.textContent = JSON.stringify(out); document.body.append(p);
  });
});
"""


def browser(tmp_path: Path, *options: str) -> subprocess.CompletedProcess:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--log-level=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)


@pytest.mark.browser
def test_a_browser_filters_marks_and_saves(tmp_path):
    page = page_of(4, tmp_path)
    page.write_text(page.read_text().replace("</body>", f"<script>{SCRIPT}</script></body>"))
    shown = browser(tmp_path, "--virtual-time-budget=5000", "--dump-dom", page.as_uri())
    assert "CONSOLE" not in shown.stderr, shown.stderr
    out = json.loads(shown.stdout.partition('<pre id="out">')[2].partition("</pre>")[0])
    assert (out["all"], out["corrected"], out["bad"]) == (4, ["liver_001"], ["liver_000"])
    assert out["saved"] == ["liver_003"]
    assert out["unmarked"] == ["liver_001", "liver_003"]
    assert out["count"] == "4 of 4 scans, 2 marked"
    assert (out["kept"], out["plain"], out["loaded"]) == (1, "none", 3 * SIZE)
    assert out["name"] == "review_nnUNetTrainer__nnUNetPlans__3d_fullres_fold_0.json"
    assert out["json"]["fold"] == 0 and out["json"]["dataset"] == "Dataset042_Liver"
    assert out["json"]["marks"] == {
        "liver_000": {"mark": "bad", "label": "sha0"},
        "liver_002": {"mark": "to correct", "label": "sha2"},
        "liver_003": {"mark": None, "label": "sha3"},
    }
