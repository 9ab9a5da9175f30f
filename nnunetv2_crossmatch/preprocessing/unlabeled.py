"""Unlabeled cases through nnU-Net's own preprocessor, with the plans of the labeled ones."""

import time
from contextlib import closing
from pathlib import Path

from nnunetv2_crossmatch.preprocessing.dataset import Planned
from nnunetv2_crossmatch.preprocessing.listing import nearly_unlabeled, survey_unlabeled
from nnunetv2_crossmatch.preprocessing.manifest import ARRAY_SUFFIXES, Manifest, is_current
from nnunetv2_crossmatch.preprocessing.scan import BadScan, preprocess_scan
from nnunetv2_crossmatch.utilities.dataset_json import read_dataset_json
from nnunetv2_crossmatch.utilities.errors import DatasetError
from nnunetv2_crossmatch.utilities.files import locked, remove_leftovers
from nnunetv2_crossmatch.utilities.workers import run_in_workers

_SECONDS_BETWEEN_MANIFESTS = 10  # what a kill costs at most


def unlabeled_cases_for_training(planned: Planned, num_processes: int) -> list[str]:
    """Ids of the preprocessed unlabeled cases; preprocesses what is missing while the raw folder is there.

    Raises:
        DatasetError: no unlabeled scan anywhere, bad scans, incomplete data, data of other plans or another
            dataset.json.
    """
    planned.dataset.require_unchanged()
    raw_folder = planned.dataset.raw
    manifest = Manifest.read(planned.unlabeled_folder)
    command = planned.command("preprocess")
    if manifest.cases and manifest.plans != planned.stamp:
        raise DatasetError(
            [f"{manifest.folder} was preprocessed with other plans than {planned.plans.plans_name}. Run: {command}"]
        )
    dataset_json = _dataset_json(planned)
    listed, problems = (
        (None, []) if raw_folder is None else survey_unlabeled(raw_folder, dataset_json, manifest.is_whole)
    )
    if problems:  # before hours are spent; the command goes on with what can be used
        raise DatasetError(problems)
    if listed is not None:
        return _bring_up_to_date(listed, problems, manifest, planned, num_processes)
    if not manifest.cases:
        raise DatasetError(
            [
                f"{planned.dataset.name} has no unlabeled scans. Put them in {raw_folder or 'nnUNet_raw/...'}/imagesUn "
                f"(or list them in unlabeled.json), or train nnUNetTrainer.",
                *(nearly_unlabeled(raw_folder) if raw_folder else ()),
            ]
        )
    if not manifest.complete or not all(map(manifest.is_whole, manifest.cases)):
        raise DatasetError(
            [f"{manifest.folder} is incomplete. Where the raw scans are, run: {command} (then copy the folder again)."]
        )
    return sorted(manifest.cases)


def preprocess_unlabeled(planned: Planned, num_processes: int) -> list[str]:
    """Bring the preprocessed unlabeled cases of one configuration up to date.

    Does what is missing or stale (other plans, other voxels) and removes what is no longer listed. A
    case is written whole or not at all. A second process waits for the first.

    Returns:
        Ids of all unlabeled cases.

    Raises:
        DatasetError: names every scan that could not be used, after the others have been done; another dataset.json
            than was planned with.
        OSError: the disk is full.
    """
    raw_folder = planned.dataset.require_raw()
    planned.dataset.require_unchanged()
    manifest = Manifest.read(planned.unlabeled_folder)
    listed, problems = survey_unlabeled(raw_folder, _dataset_json(planned), manifest.is_whole)
    if listed is None:
        none = f"{raw_folder} has neither unlabeled.json nor imagesUn."
        raise DatasetError([none, *nearly_unlabeled(raw_folder)])
    return _bring_up_to_date(listed, problems, manifest, planned, num_processes)


def _dataset_json(planned: Planned) -> dict:
    """As it was when the labeled scans were planned."""
    return read_dataset_json(planned.dataset.preprocessed / "dataset.json")


def _bring_up_to_date(
    listed: dict[str, list[Path]],
    problems: list[str],
    manifest: Manifest,
    planned: Planned,
    num_processes: int,
) -> list[str]:
    folder, stamp = manifest.folder, planned.stamp

    def is_done(manifest: Manifest) -> bool:
        return (
            not problems
            and (manifest.plans, manifest.complete) == (stamp, True)
            and manifest.cases.keys() == listed.keys()
            and all(manifest.is_current(case, files) for case, files in listed.items())
        )

    if is_done(manifest):  # no lock: the folder may be read-only
        return list(listed)
    with locked(folder / ".lock"):
        manifest = Manifest.read(folder)
        if not is_done(manifest):
            remove_leftovers(folder)
            # what is listed wrongly may have been right before
            unlisted = set() if problems else manifest.cases.keys() - listed.keys()
            for case in unlisted:
                for suffix in ARRAY_SUFFIXES:
                    (folder / (case + suffix)).unlink(missing_ok=True)
            kept = manifest.cases.items() if manifest.plans == stamp else []
            known = {case: entry for case, entry in kept if case not in unlisted and manifest.is_whole(case)}
            # a case of which a kill leaves some files new and some old must not be among them
            cases = {case: e for case, e in known.items() if case not in listed or is_current(e, listed[case])}
            reader = planned.plans.plans["image_reader_writer"]
            manifest = Manifest(folder, plans=stamp, reader=reader, complete=False, cases=cases)
            manifest.write()
            _preprocess_stale(listed, problems, known, manifest, planned, num_processes)
    return list(listed)


def _preprocess_stale(
    listed: dict[str, list[Path]],
    problems: list[str],
    known: dict[str, dict],
    manifest: Manifest,
    planned: Planned,
    num_processes: int,
) -> None:
    of_all = planned.plans.plans, planned.configuration_name, _dataset_json(planned)
    jobs = {
        case: (files, manifest.folder / case, *of_all, known.get(case))
        for case, files in listed.items()
        if case not in manifest.cases
    }
    problems = list(problems)
    written = time.monotonic()
    try:
        description = f"Preprocessing unlabeled {planned.configuration_name}"
        with closing(run_in_workers(preprocess_scan, jobs, num_processes, description)) as done:
            for case, future in done:
                try:
                    manifest.cases[case] = future.result()
                except BadScan as e:
                    problems.append(str(e))
                if time.monotonic() - written > _SECONDS_BETWEEN_MANIFESTS:
                    manifest.write()
                    written = time.monotonic()
        manifest.complete = not problems
    finally:
        manifest.write()
    if problems:
        raise DatasetError(sorted(problems))
