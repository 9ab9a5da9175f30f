"""The masks of the labeled and held-out scans: do they lie on their scan, and do their values mean something?"""

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_crossmatch.nnunet.images import NEARLY, differences, says_where
from nnunetv2_crossmatch.nnunet.labels import read_labels
from nnunetv2_crossmatch.preprocessing.scan import check_alone, check_finite, read_quietly
from nnunetv2_crossmatch.preprocessing.scan_file import BadScan
from nnunetv2_crossmatch.utilities.errors import some
from nnunetv2_crossmatch.utilities.folders import read_folder

_SHOWN = 10  # values that a mask should not have
_MOST = 10_000  # different values; it is an image, not a mask


def mask_files(raw_folder: Path, dataset_json: dict, parts: Iterable[str]) -> dict[str, dict[str, Path]]:
    """Where each part's masks are: labelsTr of imagesTr, labelsTs of imagesTs, ...; held-out ones need not exist.

    Args:
        parts: names of folders of scans.

    Returns:
        {part: {case: file}}; where dataset.json has a ``dataset``, labeled cases are from there and need not exist.
    """
    ending = dataset_json["file_ending"]
    found = {}
    for part in parts:
        folder = raw_folder / part.replace("images", "labels", 1)
        files = read_folder(folder, ending).files if folder.is_dir() else []
        found[part] = {file.name.removesuffix(ending): file for file in files}
    if "dataset" in dataset_json:
        found["imagesTr"] = {
            case: raw_folder / os.path.expandvars(entry["label"])
            for case, entry in dataset_json["dataset"].items()
            if "label" in entry
        }
    return found


def masks_without_scan(raw_folder: Path, dataset_json: dict, parts: Mapping[str, Collection[str]]) -> list[str]:
    """A line for each folder of masks that has some of no scan.

    Args:
        parts: {"imagesTr": case ids, ...}.
    """
    lines = []
    for part, masks in mask_files(
        raw_folder, dataset_json, (part for part in parts if part.startswith("images"))
    ).items():
        if alone := sorted(masks.keys() - set(parts[part])):
            folder = part.replace("images", "labels", 1)
            line = f"{len(alone)} of {len(masks)} masks in {folder} have no scan in {part}, not used: {some(alone)}."
            if any(re.search(r"_\d{4}$", case) and case[:-5] in parts[part] for case in alone):
                line += " A mask has no channel number: rename them."
            lines.append(line)
    return lines


def describe_mask(file: Path, scan_shape: list[int], scan_properties: dict, reader: BaseReaderWriter) -> dict:
    """What :func:`mask_findings` needs to know of a mask.

    Args:
        scan_shape: z, y, x.
        scan_properties: what the reader says of the scan.

    Returns:
        sha256 of its voxels; shape; ``differs``, see :func:`~nnunetv2_crossmatch.nnunet.images.differences` (nothing
        of a TIFF without a spacing file); ``spacing``; ``values``, the integers that it holds; ``odd``, the first
        other ones.

    Raises:
        BadScan: it cannot be read, has several channels or values that are no numbers.
    """
    check_alone(file, reader, is_mask=True)
    mask, properties = read_quietly(lambda: reader.read_seg(str(file)), str(file))
    if len(mask) != 1:
        raise BadScan(f"{file} has {len(mask)} channels. A mask has one: save the labels 0, 1, 2, ... as gray values.")
    check_finite(mask, str(file))
    shape = list(mask.shape[1:])
    return {
        "sha256": hashlib.sha256(np.ascontiguousarray(mask).data.cast("B")).hexdigest(),
        "shape": shape,
        "spacing": [float(s) for s in properties["spacing"]],
        "differs": differences(properties, scan_properties) if says_where(file) and shape == scan_shape else [],
        **dict(zip(("values", "odd"), _values(mask), strict=True)),
    }


def _values(mask: np.ndarray) -> tuple[list[int], list[float]]:
    """Integers among the values, and the first values that are none."""
    whole: set[int] = set()
    odd: set[float] = set()
    for piece in mask[0]:  # slice by slice: a CT's integers would be a gigabyte
        integers = piece.astype(np.int64)
        if (integers == piece).all() and integers.min() >= 0 and integers.max() < 1 << 16:
            whole.update(np.flatnonzero(np.bincount(integers.reshape(-1))).tolist())  # faster than sorting
        else:
            for value in np.unique(piece).tolist():
                (whole if value == round(value) else odd).add(value)
        if len(whole) + len(odd) > _MOST:
            break
    return sorted(map(int, whole)), sorted(odd)[:_SHOWN]


def mask_findings(
    part: str, scans: Mapping[str, dict], dataset_json: dict, folder: str | None = None
) -> tuple[list[str], list[str]]:
    """What is wrong with a part's masks, and what is odd about them, a line for each kind.

    Wrong: another size than the scan's, values that are no integers (nnU-Net cuts the fraction off, so that
    0.99999994 becomes background), values that dataset.json does not have. Odd: another spacing, origin or orientation
    than the scan's, no foreground, and among labeled scans a class that none has.

    Args:
        scans: {case: its entry in ``content.json``}; those without a ``mask`` have none.
        folder: where the masks are, to be named; by default that of the part.
    """
    labels = read_labels(dataset_json)
    known = {*labels.known, *(() if labels.ignore is None else (labels.ignore,))}
    masks = {case: entry["mask"] for case, entry in scans.items() if entry.get("mask")}
    sized = {case: mask for case, mask in masks.items() if mask["shape"] == scans[case]["shape"]}
    folder = folder or part.replace("images", "labels", 1)

    def line(cases: dict[str, str], what: str) -> Iterator[str]:
        if cases:
            named = some([f"{case} ({why})" if why else case for case, why in cases.items()])
            yield f"{len(cases)} of {len(masks)} masks in {folder} {what}".replace("@", named)

    def voxels(shape: list[int]) -> str:
        return "x".join(map(str, shape))

    def times(figures: Iterable) -> str:
        return " x ".join(f"{figure:.7g}" for figure in figures)

    bad = [
        *line(
            {
                case: f"{voxels(mask['shape'])}, its scan {voxels(scans[case]['shape'])}"
                for case, mask in masks.items()
                if case not in sized
            },
            "have another size (z, y, x) than their scan: @. Supply the mask of this scan or remove the case.",
        ),
        *line(
            {case: str(mask["odd"][0]) for case, mask in masks.items() if mask["odd"]},
            "have values that are no integers: @. nnU-Net cuts off what follows the point. Round them and save them "
            "as integers.",
        ),
        *line(
            {
                case: some([str(value) for value in foreign])
                for case, mask in masks.items()
                if (foreign := [value for value in mask["values"] if value not in known])
            },
            f"have values that dataset.json does not name: @. It has {_named(dataset_json)}. Correct the masks or "
            "dataset.json.",
        ),
    ]
    warnings: list[str] = []
    for what in ("spacing", "origin", "orientation"):
        unlike = {
            case: f"{times(mask['spacing'])} mm, its scan {times(scans[case]['spacing'])}" if what == "spacing" else ""
            for case, mask in sized.items()
            if what in mask["differs"]
        }
        warnings += line(
            unlike,
            f"have another {what} than their scan: @. Training takes voxel for voxel, whatever the header says: look "
            "at one of them over its scan.",
        )
    warnings += line(
        {case: "" for case, mask in masks.items() if not set(mask["values"]) - {0, labels.ignore} and not mask["odd"]},
        "are empty: @. Right if these scans show none of it.",
    )
    if part == "imagesTr" and masks:
        there = {value for mask in masks.values() for value in mask["values"]}
        there |= {
            round(value) for mask in masks.values() for value in mask["odd"] if abs(value - round(value)) <= NEARLY
        }
        absent = [name for name, values in labels.classes.items() if not there & set(values)]
        if absent:
            warnings.append(
                f"No labeled scan has {some(absent)}. A class without an example is not learned. Label one or remove "
                f"the class from dataset.json."
            )
    return bad, warnings


def _named(dataset_json: dict) -> str:
    return some([f"{name} {value}" for name, value in dataset_json["labels"].items()], 8)
