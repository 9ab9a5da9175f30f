"""A page of the unlabeled scans that are least like the labeled ones, to see what does not belong among them."""

import base64
import io
import shlex
from contextlib import closing
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nnunetv2_crossmatch.nnunet.images import find_reader, read_images
from nnunetv2_crossmatch.preprocessing.content import FILE, LABELED, UNLABELED, Content
from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.preprocessing.image_folder import UNLABELED_FOLDER, UNLABELED_LIST
from nnunetv2_crossmatch.preprocessing.listing import are_absent, labeled_scans, list_unlabeled
from nnunetv2_crossmatch.preprocessing.outliers import histograms, oddness, reasons_by_case
from nnunetv2_crossmatch.self_training.page import Page, Shown, thumbnail, write_page
from nnunetv2_crossmatch.utilities.dataset_json import channel_names
from nnunetv2_crossmatch.utilities.workers import run_in_workers

PAGE = "unlabeled_scans.html"  # in the preprocessed dataset folder
ODDEST = 20
EXAMPLES = 3  # labeled scans
LEFT_OUT = "excluded"  # in the raw dataset folder, which nothing reads


def write_pool_page(dataset: Dataset, content: Content, num_processes: int) -> Path:
    """The oddest unlabeled scans and a few labeled ones, with the intensities of both sets.

    Drawn again only when the scans have changed.

    Args:
        content: of all raw scans, labeled and unlabeled, as ``check`` has just seen them.
    """
    labeled, unlabeled = content[LABELED], content[UNLABELED]
    page = dataset.preprocessed / PAGE
    if page.exists() and page.stat().st_mtime > (dataset.preprocessed / FILE).stat().st_mtime:
        return page
    raw, channels = dataset.require_raw(), channel_names(dataset.json)
    scans = {**(list_unlabeled(raw, dataset.json, unlabeled.__contains__) or {}), **labeled_scans(raw, dataset.json)}
    scans = {case: files for case, files in scans.items() if not are_absent(files)}
    odd = oddness(labeled, unlabeled, channels)
    oddest = sorted(odd.keys() & scans, key=lambda case: (-odd[case], case))[:ODDEST]
    examples = [case for case in labeled if case in scans][:EXAMPLES]
    notes = reasons_by_case(labeled, {case: unlabeled[case] for case in oddest}, channels)
    notes |= {case: ["labeled, to compare with"] for case in examples}
    jobs = {case: (scans[case], dataset.json) for case in (*oddest, *examples)}
    with closing(run_in_workers(_thumbnail, jobs, num_processes, "Drawing")) as done:
        pictures = {case: future.result() for case, future in done}
    shown = [Shown(case, None, {}, scans[case][0], None, pictures[case], notes.get(case, [])) for case in jobs]
    named = sum(one > 1 for one in odd.values())
    lines = [
        f"{len(oddest)} of {len(unlabeled)} unlabeled scans, the one first that is least like the {len(labeled)} "
        f"labeled ones. check names {named} of all.",
        f"To leave a scan out, {_how_to_leave_out(raw)}",
    ]
    check = f"nnUNetv2_crossmatch check -d {dataset.name}"
    title = f"{dataset.name}: unlabeled scans beside the labeled ones"
    write_page(Page(title, lines, "", {}, check, picture=_draw_histograms(labeled, unlabeled, channels)), shown, page)
    return page


def _how_to_leave_out(raw: Path) -> str:
    if (raw / UNLABELED_LIST).exists():
        return f"take its entry out of {raw / UNLABELED_LIST}."
    scans, folder = (shlex.quote(str(raw / name)) for name in (UNLABELED_FOLDER, LEFT_OUT))
    return f"move its files away, for example: mkdir -p {folder}; mv {scans}/CASE_[0-9][0-9][0-9][0-9].* {folder}"


def _thumbnail(files: list[Path], dataset_json: dict) -> tuple[str, str]:
    """In a worker."""
    data, properties = read_images(files, find_reader(dataset_json, files[:1])())
    nothing = np.zeros(data.shape[1:], np.uint8)
    return thumbnail(data[0], nothing, nothing > 0, properties["spacing"], {})


def _draw_histograms(labeled: dict[str, dict], unlabeled: dict[str, dict], channels: list[str]) -> str:
    """Intensities of both sets, as SVG to put into a page; empty if no channel has any but 0."""
    of_channels = zip(channels, histograms(labeled, unlabeled, channels), strict=True)
    drawn = [(name, edges, shares) for name, (edges, *shares) in of_channels if np.isfinite(edges).all()]
    if not drawn:
        return ""
    figure = Figure((3.6 * len(drawn), 2.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(drawn)))
    for axis, (name, edges, shares) in zip(axes, drawn, strict=True):
        for of_set, label, color in zip(shares, ("labeled", "unlabeled"), ("#7f7f7f", "#0072b2"), strict=True):
            axis.stairs(100 * of_set, edges, label=label, color=color)
        axis.set(xlabel=f"intensity, {name}", ylabel="voxels [%]")
    axes[-1].legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
