"""Pseudo-labels through the steps of nnU-Net's preprocessor, beside the images that are preprocessed already."""

import os
import shutil
import tempfile
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from batchgenerators.utilities.file_and_folder_operations import load_json, write_pickle
from filelock import FileLock
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.data.loading import UnlabeledDataset
from nnunetv2_crossmatch.preprocessing.files import write_json
from nnunetv2_crossmatch.preprocessing.listing import DatasetError
from nnunetv2_crossmatch.preprocessing.manifest import MANIFEST, Manifest, plans_stamp, source_stamp
from nnunetv2_crossmatch.preprocessing.scan import INCOMING
from nnunetv2_crossmatch.preprocessing.unlabeled import unlabeled_folder
from nnunetv2_crossmatch.preprocessing.workers import run_in_workers
from nnunetv2_crossmatch.pseudo_labels.confidence import with_ignore_label
from nnunetv2_crossmatch.pseudo_labels.record import FOLDER, RECORD, Origin, Record

_SUFFIXES = ("_seg.b2nd", ".pkl")


class BadLabel(ValueError):
    """One pseudo-label that cannot be used; the message names it, the reason and the fix."""


def pseudo_labels_for_training(
    raw_folder: Path | None,
    preprocessed_folder: Path,
    plans: PlansManager,
    configuration_name: str,
    fold: int | str,
    cases: list[str],
    validation: list[str],
    teacher: str | None,
    num_processes: int,
) -> tuple[Path, Origin]:
    """Preprocess what is missing or stale of one fold's pseudo-labels while the raw folder has them.

    Args:
        cases: the unlabelled cases that this fold may use, preprocessed.
        validation: the labelled ones that it holds out; none for fold "all".
        teacher: the trainer whose pseudo-labels are wanted; None for the only one there is.

    Returns:
        ``nnUNet_preprocessed/DatasetXXX_NAME/<data_identifier>_pseudo/TRAINER__PLANS__CONFIG/fold_K`` with
        ``CASE_seg.b2nd`` and ``CASE.pkl``, and what the pseudo-labels were made with.

    Raises:
        DatasetError: no or several sets of pseudo-labels, cases without one, labels that fit neither their
            scan nor the dataset, another split than that of the model that wrote them.
    """
    configuration = plans.get_configuration(configuration_name)
    preprocessed = preprocessed_folder / f"{configuration.data_identifier}_pseudo"
    command = (
        f"nnUNetv2_crossmatch pseudo-label -d {plans.dataset_name} -c {configuration_name} "
        f"-tr {teacher or 'nnUNetTrainer'} -p {plans.plans_name} -f {fold}"
    )
    of_fold = f"{teacher or '*'}__{plans.plans_name}__{configuration_name}/fold_{fold}"
    raw_sets = [] if raw_folder is None else (raw_folder / FOLDER).glob(f"{of_fold}/{RECORD}")
    names = {file.parents[1].name for file in (*raw_sets, *preprocessed.glob(f"{of_fold}/{MANIFEST}"))}
    if not names:
        raise DatasetError([f"Fold {fold} of {plans.dataset_name} has no pseudo-labels. Run: {command}"])
    if len(names) > 1:
        raise DatasetError(
            [
                f"Fold {fold} has pseudo-labels of several trainers: {', '.join(sorted(names))}. Remove all but one, "
                "or say in a subclass which: teacher = 'nnUNetTrainer'."
            ]
        )
    name = names.pop()
    target = preprocessed / name / f"fold_{fold}"
    source = None if raw_folder is None else raw_folder / FOLDER / name / f"fold_{fold}"
    if source is not None and (source / RECORD).exists():
        _bring_up_to_date(source, target, preprocessed_folder, plans, configuration_name, cases, command, num_processes)
    content = load_json(str(target / MANIFEST))
    origin = Origin(**content["origin"])
    if missing := [case for case in cases if case not in content["cases"]]:
        raise DatasetError([f"{target} lacks {_some(missing)}. Where the raw scans are, run: {command}"])
    if content["plans"] != plans_stamp(plans, configuration):
        raise DatasetError([f"{target} was made with other plans than {plans.plans_name}. Run: {command}"])
    if fold != "all" and origin.validation != sorted(validation):
        raise DatasetError(
            [
                f"The model that wrote {target} validated other cases than fold {fold} of splits_final.json now does. "
                f"Train it anew, then run: {command}"
            ]
        )
    return target, origin


def _some(cases: list[str]) -> str:
    return ", ".join(cases[:3]) + (f" and {len(cases) - 3} more" if len(cases) > 3 else "")


def _bring_up_to_date(
    source: Path,
    target: Path,
    preprocessed_folder: Path,
    plans: PlansManager,
    configuration_name: str,
    cases: list[str],
    command: str,
    num_processes: int,
) -> None:
    configuration = plans.get_configuration(configuration_name)
    dataset_json = with_ignore_label(load_json(str(preprocessed_folder / "dataset.json")))
    images = Manifest.read(unlabeled_folder(preprocessed_folder, configuration))
    files = {case: source / (case + dataset_json["file_ending"]) for case in cases}
    if missing := [case for case, file in files.items() if not file.exists()]:
        raise DatasetError([f"{source} has no pseudo-label of {_some(missing)}. Run: {command}"])
    origin = Record.read(source).origin
    assert origin is not None
    made_of = {"plans": plans_stamp(plans, configuration), "labels": dataset_json["labels"]}
    entries = {
        case: {"source": source_stamp([file]), "image": images.cases[case]["sha256"]} for case, file in files.items()
    }

    def content() -> dict:
        there = load_json(str(target / MANIFEST)) if (target / MANIFEST).exists() else {}
        known = there.get("cases", {}) if {key: there.get(key) for key in made_of} == made_of else {}
        current = {
            case: entry
            for case, entry in entries.items()
            if known.get(case) == entry and all((target / (case + suffix)).exists() for suffix in _SUFFIXES)
        }
        return {**made_of, "origin": asdict(origin), "cases": current}

    def is_done() -> bool:
        now = content()
        return now["cases"].keys() == files.keys() and now == load_json(str(target / MANIFEST))

    if is_done():  # no lock: the folder may be read-only
        return
    target.mkdir(parents=True, exist_ok=True)
    with FileLock(target / ".lock"):
        for leftover in target.glob(INCOMING + "*"):
            shutil.rmtree(leftover)
        done = content()
        write_json(done, target / MANIFEST)
        jobs = {
            case: (file, images.folder, target, case, plans.plans, configuration_name, dataset_json)
            for case, file in files.items()
            if case not in done["cases"]
        }
        problems = []
        try:
            description = f"Preprocessing pseudo-labels {configuration_name}"
            with closing(run_in_workers(preprocess_pseudo_label, jobs, num_processes, description)) as finished:
                for case, future in finished:
                    try:
                        future.result()
                        done["cases"][case] = entries[case]
                    except BadLabel as e:
                        problems.append(str(e))
        finally:
            write_json({**done, "cases": dict(sorted(done["cases"].items()))}, target / MANIFEST)
    if problems:
        raise DatasetError(sorted(problems))


def preprocess_pseudo_label(
    file: Path, images: Path, target: Path, case: str, plans_json: dict, configuration_name: str, dataset_json: dict
) -> None:
    """Write ``target/CASE_seg.b2nd`` (1, z, y, x) and ``CASE.pkl``, each whole or not at all.

    The steps of nnU-Net's ``run_case_npy``: transpose, crop, resample, collect locations of every class. What they
    were for the image stands in its properties, so that the image itself is not read again; the mask of nonzero
    voxels is that of the preprocessed image.

    Args:
        images: folder of the preprocessed unlabelled cases.
        dataset_json: with an ignore label.

    Raises:
        BadLabel: not readable, another shape or spacing than the scan's, a label that the dataset does not have.
    """
    plans = PlansManager(plans_json)
    configuration = plans.get_configuration(configuration_name)
    label_manager = plans.get_label_manager(dataset_json)
    data, mask, _, properties = UnlabeledDataset(str(images), [case]).load_case(case)
    seg = _read(file, plans, properties, [*map(int, label_manager.all_labels), label_manager.ignore_label])

    seg = seg.transpose([0, *(axis + 1 for axis in plans.transpose_forward)])
    seg = seg[(slice(None), *bounding_box_to_slice(properties["bbox_used_for_cropping"]))]
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    target_spacing = [*spacing[: 3 - len(configuration.spacing)], *configuration.spacing]  # 2d leaves the slices
    seg = configuration.resampling_fn_seg(seg, data.shape[1:], spacing, target_spacing).astype(np.int16)
    seg[(seg == 0) & (mask[:] < 0)] = -1

    preprocessor = configuration.preprocessor_class(verbose=False)
    wanted = label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
    # with an ignore label nnU-Net centres patches on annotated voxels of this key
    annotated = [-1, *label_manager.all_labels]
    properties["class_locations"] = preprocessor._sample_foreground_locations(seg, [*wanted, annotated])
    seg = preprocessor.modify_seg_fn(seg, plans, dataset_json, configuration)

    blocks, chunks = comp_blosc2_params(seg.shape, tuple(configuration.patch_size), seg.itemsize)
    with tempfile.TemporaryDirectory(prefix=INCOMING, dir=target) as incoming:
        temporary = str(Path(incoming) / case)
        nnUNetDatasetBlosc2.save_seg(np.ascontiguousarray(seg), temporary + "_seg", chunks, blocks)
        write_pickle(properties, temporary + ".pkl")
        for suffix in _SUFFIXES:
            os.replace(temporary + suffix, target / (case + suffix))


def _read(file: Path, plans: PlansManager, properties: dict, allowed: list[int]) -> np.ndarray:
    anew = "Correct it, or remove it and run nnUNetv2_crossmatch pseudo-label again."
    try:
        seg, own = plans.image_reader_writer_class().read_seg(str(file))
    except Exception as e:
        raise BadLabel(f"{file} cannot be read ({e}). {anew}") from e
    shape = tuple(np.array(properties["shape_before_cropping"])[list(plans.transpose_backward)])
    if seg.shape[1:] != shape or not np.allclose(own["spacing"], properties["spacing"], rtol=1e-3):
        raise BadLabel(
            f"{file} has shape {seg.shape[1:]} and spacing {own['spacing']}, its scan {shape} and "
            f"{properties['spacing']}. {anew}"
        )
    if foreign := set(np.unique(seg).tolist()) - set(allowed):
        raise BadLabel(f"{file} has labels {sorted(foreign)}, which are none of {allowed}. {anew}")
    return seg.astype(np.int16)
