"""One page of scans with their segmentations, as a file that opens anywhere: for the review and for suggestions."""

import base64
import io
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.colors import to_rgb
from matplotlib.image import imsave
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnunetv2_crossmatch.nnunet.images import read_images
from nnunetv2_crossmatch.nnunet.labels import read_labels
from nnunetv2_crossmatch.preprocessing.listing import are_absent
from nnunetv2_crossmatch.self_training.picture import CONTOURS
from nnunetv2_crossmatch.utilities.files import write_text

SIZE = 190  # pixels of a plane's longer side


@dataclass
class Shown:
    """One scan on the page.

    doubt: 0 to 1, by which the page is sorted; None where there is no label to doubt.
    shares: a number, 0 to 1, for each class by its name.
    image, label: files; None where there is no label.
    pictures: see :func:`thumbnail`.
    identity: of the label, SHA-256.
    mark: that was taken back of this label; empty for none.
    """

    case: str
    doubt: float | None
    shares: Mapping[str, float | None]
    image: Path
    label: Path | None
    pictures: tuple[str, str]
    notes: Sequence[str] = ()
    identity: str = ""
    mark: str = ""

    @property
    def commands(self) -> dict[str, str]:
        """What opens the scan with the label, by program."""
        image = str(self.image.resolve())
        snap, load = ["itksnap", "-g", image], f"slicer.util.loadVolume({json.dumps(image, ensure_ascii=False)})"
        if self.label is not None:
            label = str(self.label.resolve())
            snap += ["-s", label]
            load += f"; slicer.util.loadSegmentation({json.dumps(label, ensure_ascii=False)})"
        return {"ITK-SNAP": shlex.join(snap), "3D Slicer": shlex.join(["Slicer", "--python-code", load])}


@dataclass
class Page:
    """What stands around the scans.

    share: what the classes' numbers say.
    review: the beginning of the JSON that the marks are saved in; none if nothing is marked.
    picture: above the scans, a data URI; none if empty.
    """

    title: str
    lines: Sequence[str]
    share: str
    legend: Mapping[str, str]
    next_command: str
    review: Mapping[str, object] | None = None
    odd: Mapping[str, Sequence[str]] = field(default_factory=dict)
    picture: str = ""


def write_page(page: Page, scans: Iterable[Shown], file: Path) -> None:
    """One HTML file without links to elsewhere, the scans in the order that they come in."""
    environment = Environment(
        loader=PackageLoader(__package__, ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    shown = list(scans)
    identities = {scan.case: scan.identity for scan in shown}
    saved = {scan.case: scan.mark for scan in shown if scan.mark}
    date = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    text = environment.get_template("page.html").render(
        page=page, scans=shown, identities=identities, saved=saved, date=date
    )
    write_text(text, file)


def value_names(labels: dict) -> dict[int, str]:
    """{value of a mask: what it is called}; of regions those that consist of one value."""
    classes = read_labels({"labels": labels}).classes
    values = sorted({value for several in classes.values() for value in several})
    names = {several[0]: name for name, several in classes.items() if len(several) == 1}
    return {value: names.get(value, f"label {value}") for value in values}


def colors(values: Iterable[int]) -> dict[int, str]:
    """The color of each value of a mask, as in the pictures."""
    return {value: CONTOURS[(value - 1) % len(CONTOURS)] for value in values}


def thumbnail_of_files(
    image_files: list[Path], label_file: Path, plans_json: dict, values: list[int], ignore: int
) -> tuple[str, str]:
    """:func:`thumbnail` of a scan and a label that holds ignored voxels; black where the scan is not at hand."""
    reader = PlansManager(plans_json).image_reader_writer_class()
    label, properties = reader.read_seg(str(label_file))
    label = label[0].astype(int)
    image = label * 0 if are_absent(image_files) else read_images(image_files, reader)[0][0]
    return thumbnail(image, label, label == ignore, properties["spacing"], colors(values))


def thumbnail(
    image: NDArray, label: NDArray[np.integer], ignored: NDArray[np.bool_], spacing: Sequence[float], of: dict[int, str]
) -> tuple[str, str]:
    """Three planes through the largest foreground beside each other, of a 2D image one.

    Args:
        image: (z, y, x), as are ``label`` and ``ignored``.
        spacing: of the three axes in mm.
        of: color of each value whose outline is drawn.

    Returns:
        The image as JPEG and, to lay over it, outlines and shaded ignored voxels as transparent PNG; both as text to
        put into a page.
    """
    shown = np.isin(label, list(of)) | ignored
    low, high = np.percentile(image[tuple(slice(None, None, 1 + n // 64) for n in image.shape)], (1, 99))
    grays, overlays = [], []
    drawn: list[NDArray] = [image.astype(np.float32) - low, label, ignored]
    for axis in [0] if label.shape[0] == 1 else [0, 1, 2]:
        others = tuple(a for a in range(3) if a != axis)
        where = int(shown.sum(others).argmax()) if shown.any() else label.shape[axis] // 2
        gray, plane, unsure = (
            _square(array.take(where, axis), [spacing[a] for a in others], upside_down=axis > 0) for array in drawn
        )
        grays.append((255 * np.clip(gray / max(high - low, 1e-6), 0, 1)).astype(np.uint8))
        overlay = np.zeros((SIZE, SIZE, 4), np.uint8)
        overlay[unsure.astype(bool)] = (255, 255, 0, 90)
        for value, color in of.items():
            overlay[_outline(plane == value)] = (*(round(255 * part) for part in to_rgb(color)), 255)
        overlays.append(overlay)
    gray, overlay = np.hstack(grays), np.hstack(overlays)
    return _as_text(np.repeat(gray[..., None], 3, -1), "jpeg", {"quality": 75}), _as_text(overlay, "png", {})


def _square(plane: NDArray, spacing: Sequence[float], upside_down: bool) -> NDArray:
    """(SIZE, SIZE) with the plane in its middle, in its proportions; 0 around it."""
    extents = np.array(plane.shape) * spacing
    rows, columns = np.maximum(1, np.round(SIZE * extents / extents.max())).astype(int)
    nearest = [
        ((np.arange(n) + 0.5) * size / n).astype(int) for n, size in zip((rows, columns), plane.shape, strict=True)
    ]
    result = np.zeros((SIZE, SIZE), plane.dtype)
    top, left = (SIZE - rows) // 2, (SIZE - columns) // 2
    resized = plane[np.ix_(*nearest)]
    result[top : top + rows, left : left + columns] = resized[::-1] if upside_down else resized
    return result


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels inside with a neighbor outside; the picture's border is none."""
    padded = np.pad(inside, 1, mode="edge")
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def _as_text(pixels: NDArray[np.uint8], form: str, options: dict) -> str:
    buffer = io.BytesIO()
    imsave(buffer, pixels, format=form, pil_kwargs=options)
    return f"data:image/{form};base64," + base64.b64encode(buffer.getvalue()).decode()
