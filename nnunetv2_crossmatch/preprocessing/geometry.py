"""Scans whose header does not say how large their voxels are, among others whose header does."""

from collections.abc import Iterator, Mapping

import numpy as np

from nnunetv2_crossmatch.nnunet.images import PLACEHOLDER, TIFF_ENDINGS, are_volumes, is_flat
from nnunetv2_crossmatch.utilities.errors import some


def missing_spacings(content: Mapping[str, Mapping[str, dict]], labeled: str) -> Iterator[tuple[str, bool, str]]:
    """A line for each part and kind: 2D among 3D, TIFFs without their spacing file, headers of bare arrays.

    nnU-Net gives a 2D image a third spacing of 999 times the other two, and 1 x 1 x 1 to a TIFF without a spacing
    file. A NIfTI file that was saved from a bare array (20 volumes of LiTS are such) has 1 x 1 x 1 mm, too.

    Args:
        content: part -> case -> entry of ``content.json``.
        labeled: the part with which the others are compared.

    Yields:
        The part, whether its scans cannot be used, and the line.
    """
    of_labeled = content.get(labeled, {}).values()
    every = [entry for scans in content.values() for entry in scans.values()]
    are_3d = bool(of_labeled) and are_volumes(np.median([entry["shape"] for entry in of_labeled], axis=0))
    spacings = sorted(entry["spacing"] for entry in every if not entry.get("bare"))
    is_known = any(spacing != [1, 1, 1] for spacing in spacings)
    usual = " x ".join(f"{s:.4g}" for s in spacings[len(spacings) // 2]) if spacings else ""
    for part, scans in content.items():
        flat = [case for case, entry in scans.items() if is_flat(entry["shape"], entry["spacing"])]
        bare = [case for case, entry in scans.items() if entry.get("bare")]
        tiffs = [case for case in bare if scans[case]["source"][0][0].lower().endswith(TIFF_ENDINGS)]
        others = [case for case in bare if case not in tiffs]
        if are_3d and flat:
            yield (
                part,
                True,
                f"{len(flat)} of {len(scans)} scans in {part} are 2D images among 3D scans: {some(flat)}. They have no "
                f"third spacing; nnU-Net's placeholder, {PLACEHOLDER} times the others, is none. Supply the 3D scan or "
                "remove the case.",
            )
        if is_known and tiffs:
            yield (
                part,
                not any(entry.get("bare") for entry in of_labeled),
                f"{len(tiffs)} of {len(scans)} TIFFs in {part} have no spacing file: {some(tiffs)}. nnU-Net would take "
                f"1 x 1 x 1; others have {usual}. Put one beside each, NAME.json beside NAME.tif or "
                'NAME_0000.tif: {"spacing": [z, y, x]}.',
            )
        if is_known and others:
            yield (
                part,
                False,
                f"{len(others)} of {len(scans)} scans in {part} have the header of a bare array (1 x 1 x 1 mm, at 0): "
                f"{some(others)}. Others have {usual} mm (z, y, x): the spacing was probably lost in saving. "
                "Correct their headers or remove the cases.",
            )
