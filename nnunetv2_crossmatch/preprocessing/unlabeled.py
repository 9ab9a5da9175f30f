"""Unlabeled cases through nnU-Net's own preprocessor, with the plans of the labeled ones."""

import time
from contextlib import closing
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_crossmatch.preprocessing.listing import survey_unlabeled
from nnunetv2_crossmatch.preprocessing.manifest import ARRAY_SUFFIXES, Manifest, is_current, plans_stamp
from nnunetv2_crossmatch.preprocessing.scan import BadScan, preprocess_scan
from nnunetv2_crossmatch.utilities.errors import DatasetError
from nnunetv2_crossmatch.utilities.files import locked, remove_leftovers
from nnunetv2_crossmatch.utilities.workers import run_in_workers

_SECONDS_BETWEEN_MANIFESTS = 10  # what a kill costs at most


def unlabeled_folder(preprocessed_folder: Path, configuration: ConfigurationManager) -> Path:
    """``nnUNet_preprocessed/DatasetXXX_NAME/<data_identifier>_unlabeled``."""
    return preprocessed_folder / f"{configuration.data_identifier}_unlabeled"


def read_plans(preprocessed_folder: Path, identifier: str) -> PlansManager:
    """Raises ValueError: there are none of that name."""
    file = preprocessed_folder / f"{identifier}.json"
    if not file.exists():
        raise ValueError(
            f"There is no {file}. Run nnUNetv2_plan_and_preprocess -d {preprocessed_folder.name}, or see -p."
        )
    return PlansManager(str(file))


def unlabeled_cases_for_training(
    raw_folder: Path | None,
    preprocessed_folder: Path,
    plans: PlansManager,
    configuration_name: str,
    num_processes: int,
) -> list[str]:
    """Ids of the preprocessed unlabeled cases; preprocesses what is missing while the raw folder is there.

    Raises:
        DatasetError: no unlabeled scan anywhere, bad scans, incomplete data or data of other plans.
    """
    configuration = plans.get_configuration(configuration_name)
    manifest = Manifest.read(unlabeled_folder(preprocessed_folder, configuration))
    command = f"nnUNetv2_crossmatch preprocess -d {plans.dataset_name} -c {configuration_name} -p {plans.plans_name}"
    if manifest.cases and manifest.plans != plans_stamp(plans, configuration):
        raise DatasetError(
            [f"{manifest.folder} was preprocessed with other plans than {plans.plans_name}. Run: {command}"]
        )
    dataset_json = load_json(str(preprocessed_folder / "dataset.json"))
    listed, problems = (
        (None, []) if raw_folder is None else survey_unlabeled(raw_folder, dataset_json, manifest.is_whole)
    )
    if problems:  # before hours are spent; the command goes on with what can be used
        raise DatasetError(problems)
    if listed is not None:
        return _bring_up_to_date(listed, problems, manifest, plans, configuration_name, dataset_json, num_processes)
    if not manifest.cases:
        raise DatasetError(
            [
                f"{plans.dataset_name} has no unlabeled scans. Put them in {raw_folder or 'nnUNet_raw/...'}/imagesUn "
                f"(or list them in unlabeled.json), or train nnUNetTrainer."
            ]
        )
    if not manifest.complete or not all(map(manifest.is_whole, manifest.cases)):
        raise DatasetError(
            [f"{manifest.folder} is incomplete. Where the raw scans are, run: {command} (then copy the folder again)."]
        )
    return sorted(manifest.cases)


def preprocess_unlabeled(
    raw_folder: Path, preprocessed_folder: Path, plans: PlansManager, configuration_name: str, num_processes: int
) -> list[str]:
    """Bring the preprocessed unlabeled cases of one configuration up to date.

    Does what is missing or stale (other plans, other voxels) and removes what is no longer listed. A
    case is written whole or not at all. A second process waits for the first.

    Returns:
        Ids of all unlabeled cases.

    Raises:
        DatasetError: names every scan that could not be used, after the others have been done.
        OSError: the disk is full.
    """
    dataset_json = load_json(str(preprocessed_folder / "dataset.json"))
    manifest = Manifest.read(unlabeled_folder(preprocessed_folder, plans.get_configuration(configuration_name)))
    listed, problems = survey_unlabeled(raw_folder, dataset_json, manifest.is_whole)
    if listed is None:
        raise DatasetError([f"{raw_folder} has neither unlabeled.json nor imagesUn."])
    return _bring_up_to_date(listed, problems, manifest, plans, configuration_name, dataset_json, num_processes)


def _bring_up_to_date(
    listed: dict[str, list[Path]],
    problems: list[str],
    manifest: Manifest,
    plans: PlansManager,
    configuration_name: str,
    dataset_json: dict,
    num_processes: int,
) -> list[str]:
    folder, stamp = manifest.folder, plans_stamp(plans, plans.get_configuration(configuration_name))

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
            manifest = Manifest(folder, plans=stamp, complete=False, cases=cases)
            manifest.write()
            _preprocess_stale(listed, problems, known, manifest, plans, configuration_name, dataset_json, num_processes)
    return list(listed)


def _preprocess_stale(
    listed: dict[str, list[Path]],
    problems: list[str],
    known: dict[str, dict],
    manifest: Manifest,
    plans: PlansManager,
    configuration_name: str,
    dataset_json: dict,
    num_processes: int,
) -> None:
    jobs = {
        case: (files, manifest.folder / case, plans.plans, configuration_name, dataset_json, known.get(case))
        for case, files in listed.items()
        if case not in manifest.cases
    }
    problems = list(problems)
    written = time.monotonic()
    try:
        description = f"Preprocessing unlabeled {configuration_name}"
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
