"""Scans that were annotated since: from the unlabeled to the labeled ones, whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnunetv2_crossmatch.nnunet.images import files_beside
from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.preprocessing.content import LABELED, look_at_masked
from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.preprocessing.image_folder import UNLABELED_LIST
from nnunetv2_crossmatch.preprocessing.listing import (
    labeled_scans,
    list_unlabeled,
    unlabeled_ids,
    unlabeled_source,
    why_unusable,
)
from nnunetv2_crossmatch.preprocessing.masks import mask_files, mask_findings
from nnunetv2_crossmatch.preprocessing.reconcile import unknown_ids
from nnunetv2_crossmatch.preprocessing.splits import SPLITS, read_patients, read_splits
from nnunetv2_crossmatch.self_training.confidence import with_ignore_label
from nnunetv2_crossmatch.self_training.drafts import written_by
from nnunetv2_crossmatch.self_training.marks import REVIEW, read_marks
from nnunetv2_crossmatch.self_training.predict import PICTURES
from nnunetv2_crossmatch.self_training.record import FOLDER, PREDICTIONS, RECORD, Record, prediction_file
from nnunetv2_crossmatch.utilities.dataset_json import read_dataset_json
from nnunetv2_crossmatch.utilities.errors import DatasetError, some
from nnunetv2_crossmatch.utilities.files import (
    INCOMING,
    check_writable,
    locked,
    read_json,
    remove_leftovers,
    sha256_of,
    write_json,
)
from nnunetv2_crossmatch.utilities.folders import read_folder

STAGED = ".annotated"  # in the raw dataset folder: copies that wait for their move, and the journal
JOURNAL = "journal.json"


@dataclass
class Annotated:
    """What :func:`move_annotated` did.

    moved: cases that are labeled now; ``finished`` of them by a run that had been interrupted.
    there: were labeled before, with the same mask.
    untouched: masks that nobody changed since a model wrote them; not moved.
    apart: moved cases that a fold does not train on, because it validates their patient.
    """

    moved: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    untouched: list[str] = field(default_factory=list)
    apart: dict[int, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def move_annotated(dataset: Dataset, labels: Path, num_processes: int, untouched: bool = False) -> Annotated:
    """Make labeled cases of the unlabeled scans whose masks lie in a folder.

    All is checked before anything changes, and everything that needs room on the disk is written before the first
    move. Then a journal says what has to be done; each of its steps may be repeated, so that the next call finishes
    what a killed one began. The folder of masks stays as it is. Scans of ``imagesUn`` are moved; those of a list are
    copied, because the originals may serve others, too.

    Args:
        labels: has CASE + the dataset's file ending for each annotated case.
        untouched: take masks that nobody changed since a model wrote them, too.

    Raises:
        DatasetError: names what is wrong with any of the masks, all of it; nothing was moved.
        OSError: the disk is full, or a folder cannot be written.
    """
    raw = dataset.require_raw()
    done = Annotated()
    with locked(raw / f"{STAGED}.lock"):
        done.moved += _finish(dataset, done)
        done.finished += done.moved
        dataset = replace(dataset, json=read_dataset_json(raw / "dataset.json"))
        try:
            scans = _check(dataset, labels, num_processes, untouched, done)
        except DatasetError as e:
            if done.finished:
                before = f"{len(done.finished)} scans of a run that was interrupted are labeled now"
                raise DatasetError([*e.problems, f"{before}: {some(done.finished)}."]) from None
            raise
        if scans:
            _stage(dataset, scans)
            done.moved += _finish(dataset, done)
    return done


def _check(
    dataset: Dataset, labels: Path, num_processes: int, untouched: bool, done: Annotated
) -> dict[str, tuple[list[Path], Path]]:
    """{case: (files of the scan, mask)} of those to move.

    Raises:
        DatasetError: see :func:`move_annotated`.
    """
    dataset.require_unchanged()
    raw, ending = dataset.require_raw(), dataset.json["file_ending"]
    if not labels.is_dir():
        raise DatasetError([f"{labels} is no folder. Put the masks there, CASE{ending} for each annotated scan."])
    folder = read_folder(labels, ending)
    given = {file.name.removesuffix(ending): file for file in folder.files}
    if not given:
        raise DatasetError([f"{labels} has no mask CASE{ending}.", *folder.left_out])
    done.warnings += folder.left_out
    # what the moves go through, before the first one: a file that cannot be read would stop them halfway
    read_patients(raw)
    splits = read_splits(dataset.preprocessed)
    for file in (raw / FOLDER).rglob(RECORD):
        Record.read(file.parent)
        read_marks(file.parent)
    labeled = labeled_scans(raw, dataset.json)
    unlabeled = (list_unlabeled(raw, dataset.json) or {}) if unlabeled_ids(raw, dataset.json) else {}
    problems = unknown_ids(labels, (c for c in given if c not in labeled), unlabeled, "unlabeled case")
    problems += [f"{file} {why}. Supply or remove it." for file in given.values() if (why := why_unusable(file))]
    if problems:
        raise DatasetError(problems)

    masks = mask_files(raw, dataset.json, [LABELED])[LABELED]
    done.there += [case for case in given if case in labeled and _are_same(given[case], masks.get(case))]
    if other := [case for case in given if case in labeled and case not in done.there]:
        problems.append(
            f"{len(other)} of {len(given)} are labeled already, with another mask: {some(other)}. To correct a mask "
            f"replace it in labelsTr; remove it from {labels}."
        )
    new = {case: file for case, file in given.items() if case not in labeled}
    writers = {case: folders for case, file in new.items() if (folders := written_by(raw, case, file))}
    if untouched:
        done.warnings += _leaks(writers, splits)
    else:
        done.untouched += writers
    scans = {case: (unlabeled[case], file) for case, file in new.items() if case not in done.untouched}
    if foreign := [case for case, (files, _) in scans.items() if not all(f.name.endswith(ending) for f in files)]:
        problems.append(
            f"The files of {len(foreign)} scans do not end in {ending}, as nnU-Net wants it of labeled ones: "
            f"{some(foreign)}. Save them as {ending} and list those in {UNLABELED_LIST}."
        )
    taken = [
        target
        for case, (files, mask) in scans.items()
        for source, target in _targets(raw, case, files, mask, ending)
        if os.path.lexists(target) and not _are_same(source, target)
    ]
    problems += [f"{target} is there already, and is of no labeled scan. Move it away." for target in taken]
    entries, unreadable = look_at_masked(dataset, scans, num_processes)
    bad = _not_sure(entries, dataset.json)
    wrong, odd = mask_findings("annotated", entries, dataset.json, str(labels))
    bad += wrong
    elsewhere = {case: ", ".join(differs) for case, entry in entries.items() if (differs := entry["mask"]["differs"])}
    if elsewhere:
        named = some([f"{case} (another {what})" for case, what in elsewhere.items()])
        bad.append(
            f"{len(elsewhere)} of {len(entries)} masks in {labels} do not lie on their scan: {named}. Save them with "
            "the scan as reference, so that both headers agree."
        )
    if problems := [*problems, *unreadable, *bad]:
        raise DatasetError([*problems, f"No scan of {labels} was moved."])
    done.warnings += odd
    return scans


def _not_sure(entries: dict[str, dict], dataset_json: dict) -> list[str]:
    """Say which masks have the ignore label that pseudo-labels add, and take it from their values."""
    value = with_ignore_label(dataset_json)["labels"]["ignore"]
    cases = [case for case, entry in entries.items() if value in entry["mask"]["values"]]
    if "ignore" in dataset_json["labels"] or not cases:
        return []
    for case in cases:
        entries[case]["mask"]["values"].remove(value)
    return [
        f"{len(cases)} masks still have voxels marked as not sure (value {value}): {some(cases)}. Paint them, or begin "
        f"with the whole prediction in {PREDICTIONS}/."
    ]


def _leaks(writers: dict[str, list[Path]], splits: list[dict[str, list[str]]]) -> list[str]:
    """Folds that are to train on predictions of other folds' models, which have learned what they validate."""
    own = {
        case: [RunFolder(folder).fold for folder in folders if folder.name.startswith("fold_")]
        for case, folders in writers.items()
    }
    told = {fold: cases for fold in range(len(splits)) if (cases := [case for case in own if fold not in own[case]])}
    if not told:
        return []
    cases = sorted({case for of_fold in told.values() for case in of_fold})
    return [
        f"{len(cases)} masks are predictions that nobody changed ({some(cases)}), of models that may have learned the "
        f"cases which fold {', '.join(map(str, told))} validates. Trained on them, the scores of these folds come out "
        "too good: correct the masks, or test on other scans."
    ]


def _are_same(one: Path, other: Path | None) -> bool:
    return other is not None and other.is_file() and sha256_of(one) == sha256_of(other)


def _targets(raw: Path, case: str, files: list[Path], mask: Path, ending: str) -> Iterable[tuple[Path, Path]]:
    """(source, target) of the scan's files and the mask, each with what lies beside it; the mask first.

    A mask without a scan does no harm, a scan without a mask would stop a training.
    """
    named = [(mask, raw / "labelsTr" / f"{case}{ending}")]
    named += [(file, raw / LABELED / f"{case}_{channel:04d}{ending}") for channel, file in enumerate(files)]
    for source, target in named:
        yield from ((beside, target.parent / f"{case}{beside.suffix}") for beside in files_beside(source))
        yield source, target


def _stage(dataset: Dataset, scans: dict[str, tuple[list[Path], Path]]) -> None:
    """Copy what has to be copied, then write the journal; until that is there nothing has happened."""
    raw, ending = dataset.require_raw(), dataset.json["file_ending"]
    stage = raw / STAGED
    shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed before its journal
    source_list = unlabeled_source(raw)
    are_listed = source_list is not None and source_list.name == UNLABELED_LIST
    moves = []
    for case, (files, mask) in scans.items():
        masks = {mask, *files_beside(mask)}
        for source, target in _targets(raw, case, files, mask, ending):
            if source in masks or are_listed:
                copy = stage / target.relative_to(raw)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy)
                source = copy
            moves.append(
                [str(source.relative_to(raw) if source.is_relative_to(raw) else source), str(target.relative_to(raw))]
            )
    entries = {
        case: {
            "images": [f"{LABELED}/{case}_{channel:04d}{ending}" for channel in range(len(files))],
            "label": f"labelsTr/{case}{ending}",
        }
        for case, (files, _) in scans.items()
    }
    labeled = len(labeled_scans(raw, dataset.json))
    check_writable(stage)
    write_json({"moves": moves, "cases": entries, "numTraining": labeled + len(scans)}, stage / JOURNAL)


def _finish(dataset: Dataset, done: Annotated) -> list[str]:
    """Do what the journal says, if there is one; returns its cases."""
    raw = dataset.require_raw()
    journal_file = raw / STAGED / JOURNAL
    if not journal_file.exists():
        return []
    for folder in (raw, raw / LABELED, raw / "labelsTr"):
        remove_leftovers(folder)
    journal = read_json(journal_file)
    cases = journal["cases"]
    for source, target in journal["moves"]:
        _move(raw / source, raw / target)
    _shorten_list(raw / UNLABELED_LIST, cases)
    # nnU-Net's preprocessing reads the names of the scans from the second
    for file in (raw / "dataset.json", dataset.preprocessed / "dataset.json"):
        if file.exists():
            content = read_json(file)
            if "dataset" in content:
                content["dataset"].update(cases)
            write_json({**content, "numTraining": journal["numTraining"]}, file)
    done.apart |= _append_to_folds(dataset, list(cases))
    _forget_pseudo_labels(raw, cases, dataset.json["file_ending"])
    journal_file.unlink()  # first: a stage that cannot be removed must not be done again
    shutil.rmtree(raw / STAGED, ignore_errors=True)
    return list(cases)


def _move(source: Path, target: Path) -> None:
    """Once, whatever a kill left.

    Raises:
        FileNotFoundError: neither is there.
    """
    if not os.path.lexists(source):
        if not os.path.lexists(target):
            raise FileNotFoundError(errno.ENOENT, "was to be moved and is not there any more", str(source))
        return
    target.parent.mkdir(exist_ok=True)
    try:
        os.replace(source, target)
    except OSError as e:
        if e.errno != errno.EXDEV:
            raise
        # on another disk; in a folder, because nnU-Net takes any file with the ending for a scan
        with tempfile.TemporaryDirectory(prefix=INCOMING, dir=target.parent) as incoming:
            os.replace(shutil.copy2(source, Path(incoming) / target.name), target)
        source.unlink()


def _shorten_list(file: Path, cases: Iterable[str]) -> None:
    if not file.exists():
        return
    listed = read_json(file)
    left = {case: entry for case, entry in listed.items() if case not in cases}
    if left != listed:
        write_json(left, file)


def _append_to_folds(dataset: Dataset, cases: list[str]) -> dict[int, list[str]]:
    """Every fold trains on the cases, unless it validates their patient; it validates what it did.

    Returns:
        {fold: cases that it does not train on}.
    """
    patients = read_patients(dataset.require_raw())
    apart: dict[int, list[str]] = {}
    with locked(dataset.preprocessed / f".{SPLITS}.lock"):
        for leftover in dataset.preprocessed.glob(f"{INCOMING}*_{SPLITS}"):  # of a run that was killed
            leftover.unlink()
        if not (splits := read_splits(dataset.preprocessed)):
            return apart
        for fold, split in enumerate(splits):
            validated = {patients.get(case, case) for case in split["val"]}
            fits = [case for case in cases if patients.get(case, case) not in validated]
            split["train"] += [case for case in fits if case not in split["train"]]
            if len(fits) < len(cases):
                apart[fold] = [case for case in cases if case not in fits]
        write_json(splits, dataset.preprocessed / SPLITS)
    return apart


def _forget_pseudo_labels(raw: Path, cases: Iterable[str], ending: str) -> None:
    """Remove the cases' pseudo-labels and marks; labels that somebody corrected stay, of no use to a training."""
    for file in sorted((raw / FOLDER).rglob(RECORD)):
        with locked(file.parent / ".lock"):
            remove_leftovers(file.parent)
            record = Record.read(file.parent)
            for case in cases:
                label = record.folder / (case + ending)
                if case in record.cases and not record.is_corrected(case, label):
                    picture, prediction = record.folder / PICTURES / f"{case}.png", prediction_file(label)
                    for part in (*files_beside(label), label, *files_beside(prediction), prediction, picture):
                        part.unlink(missing_ok=True)
            if left := record.cases.keys() & set(cases):
                for case in left:
                    del record.cases[case]
                    record.left_out.pop(case, None)
                record.write()
            marks = read_marks(file.parent)
            if marks.keys() & set(cases):
                write_json({case: mark for case, mark in marks.items() if case not in cases}, file.parent / REVIEW)
