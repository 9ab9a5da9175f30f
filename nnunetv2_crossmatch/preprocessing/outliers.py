"""Unlabeled scans that do not look like the labeled ones: another body part, modality or unit."""

from collections.abc import Callable, Iterator

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from scipy.optimize import linear_sum_assignment

from nnunetv2_crossmatch.nnunet.images import is_photograph
from nnunetv2_crossmatch.preprocessing.scan import PERCENTILES

GEOMETRY_FACTOR = 1.5  # how far beyond the smallest and largest labeled spacing and extent is still usual
# how far beyond the labeled percentiles is still usual, as a share of the labeled range of intensities
INTENSITY_MARGIN = 0.3
BINS = 40


_GEOMETRY: dict[str, Callable[[dict], np.ndarray]] = {
    "spacing (z, y, x in mm)": lambda entry: np.array(entry["spacing"]),
    "extent (z, y, x in mm)": lambda entry: np.array(entry["spacing"]) * entry["shape"],
}


def find_outliers(labeled: dict[str, dict], unlabeled: dict[str, dict], channel_names: list[str]) -> Iterator[str]:
    """A line for each figure of an unlabeled scan that lies outside what the labeled ones have.

    Spacing and extent are compared per axis. Intensities are compared by their percentiles, for channels that
    nnU-Net normalizes scan by scan (MR) after bringing the 1st and 99th percentile to 0 and 1, so that
    only the form of the histogram counts; otherwise (CT, colors) as they are.

    Args:
        labeled, unlabeled: {case: :func:`~nnunetv2_crossmatch.preprocessing.scan.describe`}.
        channel_names: of dataset.json; nnU-Net takes the normalization from them.
    """
    relative = _are_relative(channel_names)
    low, high, margin = _usual_intensities(labeled, relative)
    ranges = _usual_geometry(labeled)
    for case, entry in unlabeled.items():
        for name, figure in _GEOMETRY.items():
            own, (least, most) = figure(entry), ranges[name]
            if (own < least / GEOMETRY_FACTOR).any() or (own > most * GEOMETRY_FACTOR).any():
                if is_photograph(entry["shape"], entry["spacing"]):
                    name, own, least, most = "size (y, x in pixels)", own[1:], least[1:], most[1:]
                yield f"{case}: {name} {_round(own)}; labeled scans have {_round(least)} to {_round(most)}."
        own = _percentiles(entry, relative)
        order = _likely_order(own, low, high, margin)
        if order != list(range(len(order))):
            yield f"{case}: the channels look like {', '.join(channel_names[c] for c in order)} in this order."
            continue
        for channel, name in enumerate(channel_names):
            outside = (own[channel] < (low - margin)[channel]) | (own[channel] > (high + margin)[channel])
            for p in np.flatnonzero(outside)[:1]:
                scale = ", after scaling the 1st and 99th to 0 and 1" if relative[channel] else ""
                yield (
                    f"{case}: {name} has {own[channel, p]:.4g} as percentile {PERCENTILES[p]} of its intensities; "
                    f"labeled scans have {low[channel, p]:.4g} to {high[channel, p]:.4g}{scale}."
                )


def reasons_by_case(
    labeled: dict[str, dict], unlabeled: dict[str, dict], channel_names: list[str]
) -> dict[str, list[str]]:
    """{case: what :func:`find_outliers` says of it} of those that it names."""
    found = {case: list(find_outliers(labeled, {case: entry}, channel_names)) for case, entry in unlabeled.items()}
    return {case: [line.removeprefix(f"{case}: ") for line in lines] for case, lines in found.items() if lines}


def oddness(labeled: dict[str, dict], unlabeled: dict[str, dict], channel_names: list[str]) -> dict[str, float]:
    """How odd each unlabeled scan is; above 1 :func:`find_outliers` names it.

    The farthest of its figures beyond the labeled range, in units of what is still usual; negative inside the range.
    """
    relative = _are_relative(channel_names)
    low, high, margin = _usual_intensities(labeled, relative)
    ranges = _usual_geometry(labeled).values()
    odd = {}
    for case, entry in unlabeled.items():
        own = _percentiles(entry, relative)
        beyond = [np.nan_to_num(np.maximum(low - own, own - high) / np.maximum(margin, 1e-12), nan=-np.inf).max()]
        for figure, (least, most) in zip(_GEOMETRY.values(), ranges, strict=True):
            factor = np.maximum(least / figure(entry), figure(entry) / most).max()
            beyond.append(np.log(factor) / np.log(GEOMETRY_FACTOR))
        odd[case] = float(max(beyond))
    return odd


def histograms(
    labeled: dict[str, dict], unlabeled: dict[str, dict], channel_names: list[str]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each channel the edges of bins, and the share of voxels in each, mean of the labeled and the unlabeled scans.

    They come from the percentiles, as if voxels were spread evenly between two of them.
    """
    relative = _are_relative(channel_names)
    sets = [np.array([_percentiles(entry, relative) for entry in entries.values()]) for entries in (labeled, unlabeled)]
    found = []
    for channel in range(len(channel_names)):
        of_channel = [scans[:, channel] for scans in sets]  # (scans, percentiles)
        edges = np.linspace(np.nanmin(np.vstack(of_channel)), np.nanmax(np.vstack(of_channel)), BINS + 1)
        below = ([np.interp(edges, scan, np.array(PERCENTILES) / 100, 0, 1) for scan in scans] for scans in of_channel)
        found.append((edges, *(np.nanmean(np.diff(scans), axis=0) for scans in below)))
    return found


def _are_relative(channel_names: list[str]) -> list[bool]:
    return [get_normalization_scheme(name) is ZScoreNormalization for name in channel_names]


def _usual_intensities(labeled: dict[str, dict], relative: list[bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least and most of each percentile (channels, percentiles), and what is beyond and still usual (channels, 1)."""
    usual = [_percentiles(entry, relative) for entry in labeled.values()]
    low, high = np.nanmin(usual, 0), np.nanmax(usual, 0)
    return low, high, INTENSITY_MARGIN * (high.max(1) - low.min(1))[:, None]


def _usual_geometry(labeled: dict[str, dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Least and most of each axis."""
    figures = {name: np.array([figure(entry) for entry in labeled.values()]) for name, figure in _GEOMETRY.items()}
    return {name: (of_scans.min(0), of_scans.max(0)) for name, of_scans in figures.items()}


def _percentiles(entry: dict, relative: list[bool]) -> np.ndarray:
    """(channels, percentiles); nan where a channel is 0 everywhere."""
    rows = []
    for values, is_relative in zip(entry["intensities"], relative, strict=True):
        row = np.full(len(PERCENTILES), np.nan) if values is None else np.array(values)
        if is_relative and row[-1] > row[0]:
            row = (row - row[0]) / (row[-1] - row[0])
        rows.append(row)
    return np.array(rows)


def _likely_order(own: np.ndarray, low: np.ndarray, high: np.ndarray, margin: np.ndarray) -> list[int]:
    """The labeled channel that each channel of a scan resembles most, the given order where that is as likely."""
    beyond = np.maximum(low[None] - own[:, None], own[:, None] - high[None]).clip(0)  # (own, labeled, percentiles)
    cost = np.nan_to_num(beyond / margin[None]).max(-1)
    rows, order = linear_sum_assignment(cost)
    given = cost.diagonal().max()
    return order.tolist() if given > 1 and cost[rows, order].max() < given / 2 else list(range(len(cost)))


def _round(figures: np.ndarray) -> str:
    return "(" + ", ".join(f"{f:.4g}" for f in figures) + ")"
