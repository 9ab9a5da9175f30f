"""From round to round: how the labels of each scan change, which scans are left out, and corrections that stay."""

import os
import tempfile
from contextlib import closing
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnunetv2_crossmatch.evaluation import metrics
from nnunetv2_crossmatch.nnunet.images import files_beside, is_flat, nearest_integers
from nnunetv2_crossmatch.nnunet.labels import read_labels
from nnunetv2_crossmatch.preprocessing.dataset import Planned
from nnunetv2_crossmatch.preprocessing.image_folder import HIDDEN_LABELS
from nnunetv2_crossmatch.self_training.confidence import with_ignore_label
from nnunetv2_crossmatch.self_training.record import Record, prediction_file
from nnunetv2_crossmatch.utilities.files import INCOMING, locked, sha256_of
from nnunetv2_crossmatch.utilities.workers import run_in_workers

UNSTABLE = "its label changed most from round to round"

Figures = dict[str, Any]  # of one scan, see measure_scan


def measure_fold(
    planned: Planned, folder: Path, before: Path | None, known: dict[str, Figures], num_processes: int
) -> dict[str, Figures]:
    """Figures of the scans that a fold's model labeled and nobody corrected.

    Args:
        folder: of the fold's pseudo-labels; ``before`` is that of the round before, if there is one.
        known: figures of an earlier call; of the same labels nothing is measured again.

    Raises:
        ValueError: a hidden label of another size than its scan.
    """
    dataset = planned.dataset
    ending = dataset.json["file_ending"]
    now, earlier = _labeled(folder, ending), _labeled(before, ending) if before else {}
    found, jobs = {}, {}
    for case, sha in now.items():
        label = folder / (case + ending)
        truth = dataset.require_raw() / HIDDEN_LABELS / label.name
        parts = (sha, earlier.get(case), sha256_of(truth) if truth.exists() else None)
        if known.get(case, {}).get("of") == list(parts):
            found[case] = known[case]
        else:
            files = (label, before / label.name if before and parts[1] else None, truth if parts[2] else None)
            jobs[case] = (*files, planned.plans.plans, dataset.json)
            found[case] = {"of": list(parts)}
    with closing(run_in_workers(measure_scan, jobs, num_processes, "Comparing labels")) as finished:
        for case, future in finished:
            found[case] |= future.result()
    return found


def _labeled(folder: Path, ending: str) -> dict[str, str]:
    """SHA-256 of each label that is as the model left it."""
    record = Record.read(folder)
    files = {case: folder / (case + ending) for case in record.cases}
    return {
        case: record.cases[case]["file"]
        for case, file in sorted(files.items())
        if file.exists() and prediction_file(file).exists() and not record.is_corrected(case, file)
    }


def measure_scan(label: Path, before: Path | None, truth: Path | None, plans_json: dict, dataset_json: dict) -> Figures:
    """How a label differs from the round before's and from what is known; see :func:`compare_labels`.

    Whole predictions are compared, unsure voxels included.

    Args:
        before: the label of the round before.
        truth: the label that was hidden.
    """
    reader = PlansManager(plans_json).image_reader_writer_class()

    def read(file: Path) -> tuple[NDArray, dict]:
        array, properties = reader.read_seg(str(file))
        return nearest_integers(array[0]), properties

    predicted, properties = read(prediction_file(label))
    sure = read(label)[0] != with_ignore_label(dataset_json)["labels"]["ignore"]
    known = read(truth)[0] if truth else None
    if known is not None and known.shape != predicted.shape:
        raise ValueError(f"{truth} has {known.shape} voxels, its scan {predicted.shape}. Correct or remove it.")
    # of a 2D image, whose third axis nnU-Net made up, pixels are counted
    spacing = properties["spacing"]
    flat = is_flat(predicted.shape, spacing)
    voxel = 1.0 if flat else float(np.prod(spacing)) / 1000
    labels = read_labels(dataset_json)
    earlier = read(prediction_file(before))[0] if before else None
    figures = compare_labels(predicted, sure, earlier, known, labels.classes, labels.ignore, voxel)
    return {**figures, "unit": "pixels" if flat else "ml"}


def compare_labels(
    predicted: NDArray,
    sure: NDArray,
    before: NDArray | None,
    truth: NDArray | None,
    classes: dict[str, tuple[int, ...]],
    ignore: int | None,
    voxel: float,
) -> Figures:
    """All arrays (z, y, x).

    Args:
        ignore: value of the truth's voxels that do not count.
        voxel: its volume.

    Returns:
        "changed": FLARE22's u, voxels that differ from the round before over foreground voxels; "classes": for each
        the share of "sure" voxels, the "volume", and the Dice with the round before ("agreement") and with the truth
        ("dice"). None where there is nothing to compare with.
    """
    changed = None
    if before is not None:
        # a scan that has lost all its foreground has changed, too
        changed = np.count_nonzero(predicted != before) / max(1, int(np.count_nonzero(predicted)))
    of_classes = {}
    for name, values in classes.items():
        found = np.isin(predicted, values)
        agreement = None if before is None else metrics.dice(found, np.isin(before, values))
        dice = None
        if truth is not None:
            dice = metrics.dice(found & (truth != ignore), np.isin(truth, values))
        of_classes[name] = {
            "sure": float(sure[found].mean()) if found.any() else None,
            "volume": voxel * np.count_nonzero(found),
            "agreement": _number(agreement),
            "dice": _number(dice),
        }
    return {"changed": changed, "classes": of_classes}


def _number(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def most_changed(rounds: list[dict[str, Figures]], share: float) -> list[str]:
    """The share of the scans of the last round whose labels changed most, on average over the rounds."""
    changes = {
        case: [of_round[case]["changed"] for of_round in rounds if of_round.get(case, {}).get("changed") is not None]
        for case in rounds[-1]
    }
    u = {case: float(np.mean(values)) for case, values in changes.items() if any(values)}
    return sorted(sorted(u, key=lambda case: -u[case])[: round(share * len(rounds[-1]))])


def leave_out(folder: Path, cases: list[str]) -> None:
    """Have the trainings on these labels leave out these scans for their instability, and no others."""
    with locked(folder / ".lock"):
        record = Record.read(folder)
        others = {case: why for case, why in record.left_out.items() if why != UNSTABLE}
        wanted = {**dict.fromkeys(cases, UNSTABLE), **others}
        if record.left_out != wanted:
            record.left_out = wanted
            record.write()


def carry_corrections(before: Path, folder: Path, ending: str) -> list[str]:
    """Put what was corrected by hand in the round before into this one, unless it was corrected here, too."""
    if not before.exists():
        return []
    carried = []
    with locked(folder / ".lock"):
        earlier, record = Record.read(before), Record.read(folder)
        for case, entry in earlier.cases.items():
            source, target = before / (case + ending), folder / (case + ending)
            if not earlier.is_corrected(case, source) or record.is_corrected(case, target):
                continue
            # the record first, as in labeling: what a killed run leaves is then no correction
            record.add(case, {**entry, "replaced": sha256_of(target) if target.exists() else None})
            with tempfile.TemporaryDirectory(prefix=INCOMING, dir=folder) as incoming:
                for file in (*files_beside(source), source):
                    os.replace(copyfile(file, Path(incoming) / file.name), folder / file.name)
            record.cases[case]["replaced"] = None
            record.write()
            carried.append(case)
    return carried
