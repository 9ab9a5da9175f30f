"""Unlabeled scans that do not look like the labeled ones: another body part, modality or unit."""

from collections.abc import Iterator

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from scipy.optimize import linear_sum_assignment

from nnunetv2_crossmatch.preprocessing.scan import PERCENTILES

GEOMETRY_FACTOR = 1.5  # how far beyond the smallest and largest labeled spacing and extent is still usual
# how far beyond the labeled percentiles is still usual, as a share of the labeled range of intensities
INTENSITY_MARGIN = 0.3


def find_outliers(labeled: dict[str, dict], unlabeled: dict[str, dict], channel_names: list[str]) -> Iterator[str]:
    """A line for each figure of an unlabeled scan that lies outside what the labeled ones have.

    Spacing and extent are compared per axis. Intensities are compared by their percentiles, for channels that
    nnU-Net normalizes scan by scan (MR) after bringing the 1st and 99th percentile to 0 and 1, so that
    only the form of the histogram counts; otherwise (CT, colors) as they are.

    Args:
        labeled, unlabeled: {case: :func:`~nnunetv2_crossmatch.preprocessing.scan.describe`}.
        channel_names: of dataset.json; nnU-Net takes the normalization from them.
    """
    relative = [get_normalization_scheme(name) is ZScoreNormalization for name in channel_names]
    usual = [_percentiles(entry, relative) for entry in labeled.values()]
    low, high = np.nanmin(usual, 0), np.nanmax(usual, 0)  # (channels, percentiles)
    margin = INTENSITY_MARGIN * (high.max(1) - low.min(1))[:, None]
    geometry = {
        "spacing (z, y, x in mm)": lambda entry: np.array(entry["spacing"]),
        "extent (z, y, x in mm)": lambda entry: np.array(entry["spacing"]) * entry["shape"],
    }
    ranges = {}
    for name, figure in geometry.items():
        figures = np.array([figure(entry) for entry in labeled.values()])
        ranges[name] = figures.min(0), figures.max(0)
    for case, entry in unlabeled.items():
        for name, figure in geometry.items():
            own, (least, most) = figure(entry), ranges[name]
            if (own < least / GEOMETRY_FACTOR).any() or (own > most * GEOMETRY_FACTOR).any():
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
