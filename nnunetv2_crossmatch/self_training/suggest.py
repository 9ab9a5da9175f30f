"""Which unlabeled scans to annotate next, with a draft of each to correct."""

import csv
import io
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from nnunetv2_crossmatch.nnunet.images import read_images
from nnunetv2_crossmatch.nnunet.labels import read_labels
from nnunetv2_crossmatch.nnunet.loaders import UnlabeledDataset
from nnunetv2_crossmatch.nnunet.predictor import load_predictor
from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.nnunet.segmentation import probabilities_in_scan
from nnunetv2_crossmatch.preprocessing.check import check_dataset
from nnunetv2_crossmatch.preprocessing.content import LABELED, UNLABELED, Content
from nnunetv2_crossmatch.preprocessing.dataset import Planned
from nnunetv2_crossmatch.preprocessing.listing import are_absent, list_unlabeled
from nnunetv2_crossmatch.preprocessing.manifest import Manifest
from nnunetv2_crossmatch.preprocessing.outliers import reasons_by_case
from nnunetv2_crossmatch.preprocessing.unlabeled import unlabeled_cases_for_training
from nnunetv2_crossmatch.self_training.choice import disagreement, k_center, score, shares
from nnunetv2_crossmatch.self_training.confidence import confident_labels, with_ignore_label
from nnunetv2_crossmatch.self_training.drafts import SUGGESTIONS, Drafts
from nnunetv2_crossmatch.self_training.page import (
    Page,
    Shown,
    colors,
    thumbnail,
    thumbnail_of_files,
    value_names,
    write_page,
)
from nnunetv2_crossmatch.self_training.predict import check_models, require_predictable
from nnunetv2_crossmatch.self_training.record import image_stamp
from nnunetv2_crossmatch.utilities.dataset_json import channel_names
from nnunetv2_crossmatch.utilities.files import (
    INCOMING,
    check_writable,
    locked,
    read_json,
    remove_leftovers,
    sha256_of,
    write_json,
    write_text,
)

TABLE, PAGE = "suggestions.csv", "suggestions.html"
MEASURED = "measured"  # a file for each scan, so that an interrupted run goes on
SURE = 0.9  # probability below which a draft's voxels are shaded on the page


@dataclass
class Suggested:
    """What :func:`suggest` found.

    chosen: cases, the first to annotate first, with their disagreement from 0 to 1.
    odd: cases unlike the labeled ones, and why; they are not chosen.
    corrected: drafts that somebody changed; they were left alone.
    members: what was compared.
    """

    folder: Path
    drafts: Path
    members: str
    chosen: dict[str, float] = field(default_factory=dict)
    odd: dict[str, list[str]] = field(default_factory=dict)
    corrected: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def suggest(
    planned: Planned,
    trainer: str,
    folds: list[int | str] | None,
    count: int,
    checkpoint: str,
    device: torch.device,
    num_processes: int,
) -> Suggested:
    """Choose scans on which the folds' models disagree and that are unlike each other; write drafts, table and page.

    Of a single model the predictions of the mirrored scan are compared. What was measured with the same models is not
    measured again.

    Args:
        folds: whose models are asked; None for all that are trained.
        count: how many scans, fewer if there are not as many.

    Raises:
        ValueError: a cascade, a model of other plans or labels, a single model that does not mirror.
        FileNotFoundError: no model, or not all of those asked for.
        DatasetError: no unlabeled scan, or bad ones, or a leak.
    """
    if count < 1:
        raise ValueError(f"-n is how many scans to suggest, 1 or more, not {count}.")
    require_predictable(planned, device)
    raw = planned.dataset.require_raw()
    models = _models(planned, trainer, folds, checkpoint)
    check_models(models, checkpoint, planned)
    findings = check_dataset(planned.dataset, num_processes)
    findings.raise_errors(planned.dataset.name)
    cases = unlabeled_cases_for_training(planned, num_processes)
    images = Manifest.read(planned.unlabeled_folder)
    files = list_unlabeled(raw, planned.dataset.json, images.is_whole) or {}

    asked = [model.fold for model in models]
    predictor = load_predictor(models[0].model_folder, asked, checkpoint, device, use_mirroring=False)
    predictor.network = getattr(predictor.network, "_orig_mod", predictor.network)  # hooks see no compiled network
    folder = raw / SUGGESTIONS / models[0].model_folder.name
    with locked(folder / ".lock"):
        remove_leftovers(folder)
        drafts = Drafts(folder, planned.dataset.json["file_ending"])
        several = f"the models of folds {', '.join(str(model.fold) for model in models)}"
        members = several if len(models) > 1 else f"predictions of the mirrored scan by fold {models[0].fold}"
        done = Suggested(folder, drafts.folder, members, warnings=findings.warnings)
        classes = read_labels(planned.dataset.json).classes
        stamp = [[sha256_of(model.checkpoint(checkpoint)) for model in models], list(map(list, classes.values()))]
        measured = _measure(predictor, images, cases, stamp, list(classes.values()), folder / MEASURED)
        done.odd = _odd(findings.content, cases, channel_names(planned.dataset.json))
        differ, either = (np.array([measured[case][key] for case in cases]) for key in ("differ", "either"))
        scores, of_classes = score(differ, either), shares(differ, either)
        usual = [i for i, case in enumerate(cases) if case not in done.odd]
        features = np.array([measured[cases[i]]["features"] for i in usual])
        chosen = [usual[i] for i in k_center(features, scores[usual], count)]
        done.chosen = {cases[i]: float(scores[i]) for i in chosen}
        done.corrected = [case for case in drafts.keep_only(list(done.chosen)) if case in cases]  # not labeled since
        pictures = _write_drafts(predictor, images, files, planned, drafts, measured, done)
        table = {
            case: dict(zip(classes, row.tolist(), strict=True)) for case, row in zip(cases, of_classes, strict=True)
        }
        _write_table(table, dict(zip(cases, scores.tolist(), strict=True)), files, drafts, done)
        _write_page(planned, trainer, table, files, drafts, pictures, done)
    return done


def _models(planned: Planned, trainer: str, folds: list[int | str] | None, checkpoint: str) -> list[RunFolder]:
    def of(fold: int | str) -> RunFolder:
        plans, configuration = planned.plans.plans_name, planned.configuration_name
        return RunFolder.of(planned.dataset.name, trainer, plans, configuration, fold)

    if folds is not None:
        return [of(fold) for fold in folds]
    there = [RunFolder(file.parent) for file in of(0).model_folder.glob(f"fold_*/{checkpoint}")]
    numbered = sorted((model for model in there if isinstance(model.fold, int)), key=lambda model: int(model.fold))
    return numbered or there or [of(0)]  # the model of all cases has seen no more of the unlabeled ones


@contextmanager
def pooled_bottleneck(network: nn.Module) -> Iterator[list[Tensor]]:
    """Gathers the mean of the bottleneck's features (batch, features) at each pass of the encoder."""
    gathered: list[Tensor] = []
    if not SplitUNet.can_split(network):
        raise ValueError(f"{type(network).__name__} has no encoder whose features could be compared.")
    hook = network.encoder.register_forward_hook(  # type: ignore[union-attr, operator]
        lambda module, image, skips: gathered.append(skips[-1].float().flatten(2).mean(-1).cpu())
    )
    try:
        yield gathered
    finally:
        hook.remove()


def predict_members(predictor: nnUNetPredictor, data: Tensor) -> Iterator[Tensor]:
    """Logits (classes or regions, z, y, x) of each model alone, or of a single one for the scan and its mirror images.

    Args:
        data: preprocessed, (channels, z, y, x).
    """
    every = predictor.list_of_parameters
    if len(every) > 1:
        try:
            for parameters in every:
                predictor.list_of_parameters = [parameters]
                yield predictor.predict_logits_from_preprocessed_data(data)
        finally:
            predictor.list_of_parameters = every
        return
    # the patch's axes are the scan's last ones; a 2D network sees no first one
    first = data.ndim - len(predictor.configuration_manager.patch_size)
    mirrored = [[], *([first + axis] for axis in predictor.allowed_mirroring_axes or ())]
    if len(mirrored) == 1:
        raise ValueError("One model that does not mirror says nothing to compare. Train a second fold.")
    for axes in mirrored:
        yield predictor.predict_logits_from_preprocessed_data(data.flip(axes)).flip(axes)


def _measure(
    predictor: nnUNetPredictor,
    images: Manifest,
    cases: list[str],
    stamp: list,
    classes: list[tuple[int, ...]],
    folder: Path,
) -> dict[str, dict]:
    """{case: {"differ", "either" (see :func:`disagreement`), "features"}}."""
    dataset = UnlabeledDataset(str(images.folder), cases)
    measured = {}
    for case in tqdm(cases, desc="Comparing predictions", disable=not sys.stderr.isatty()):
        file, made_with = folder / f"{case}.json", [*stamp, image_stamp(images.cases[case])]
        before = read_json(file) if file.exists() else {}
        if before.get("made_with") != made_with:
            labels: list[NDArray] = []
            data = torch.from_numpy(dataset.load_case(case)[0][:])
            with pooled_bottleneck(predictor.network) as gathered:
                for logits in predict_members(predictor, data):
                    if not labels:  # features of one network only: those of another mean something else
                        features = torch.cat(gathered).mean(0).tolist()
                    segmentation = predictor.label_manager.convert_logits_to_segmentation(logits)
                    labels.append(np.asarray(segmentation).astype(np.int16))
            differ, either = disagreement(np.stack(labels), classes).tolist()
            before = {"made_with": made_with, "differ": differ, "either": either, "features": features}
            write_json(before, file)
        measured[case] = before
    return measured


def _odd(content: Content, cases: list[str], channels: list[str]) -> dict[str, list[str]]:
    """{case: what ``check`` says of it} of those unlike the labeled ones."""
    labeled, unlabeled = content.get(LABELED, {}), content.get(UNLABELED, {})
    if not labeled:
        return {}
    return reasons_by_case(labeled, {case: unlabeled[case] for case in cases if case in unlabeled}, channels)


def _write_drafts(
    predictor: nnUNetPredictor,
    images: Manifest,
    files: dict[str, list[Path]],
    planned: Planned,
    drafts: Drafts,
    measured: dict[str, dict],
    done: Suggested,
) -> dict[str, tuple[str, str]]:
    """A draft of every chosen case as nnU-Net predicts it, with all models and mirroring; returns thumbnails.

    ``measured`` is of the same models and scans, so a draft that it names is there to stay.
    """
    predictor.use_mirroring = True
    plans, label_manager = predictor.plans_manager, predictor.label_manager
    reader = plans.image_reader_writer_class()
    ignore = with_ignore_label(planned.dataset.json)["labels"]["ignore"]
    values = list(value_names(planned.dataset.json["labels"]))
    dataset = UnlabeledDataset(str(images.folder), list(done.chosen))
    pictures = {}
    for case in tqdm(done.chosen, desc="Drafting", disable=not sys.stderr.isatty()):
        if drafts.is_corrected(case):
            done.corrected.append(case)
            pictures[case] = thumbnail_of_files(files.get(case, []), drafts.file(case), plans.plans, values, ignore)
            continue
        before = measured[case].get("draft", {})
        if drafts.file(case).exists() and sha256_of(drafts.file(case)) == before.get("file"):
            pictures[case] = (before["picture"][0], before["picture"][1])
            continue
        data, _, _, properties = dataset.load_case(case)
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data[:])).numpy()
        made = properties, plans, planned.configuration_name, predictor.dataset_json
        sure, draft = confident_labels(probabilities_in_scan(logits, *made), label_manager, SURE, ignore)
        with tempfile.TemporaryDirectory(prefix=INCOMING, dir=done.folder) as incoming:
            reader.write_seg(draft, str(Path(incoming) / drafts.file(case).name), properties)
            check_writable(Path(incoming))  # SimpleITK truncates a NIfTI file on a full disk without a word
            is_new = drafts.take(case, Path(incoming))
        scan = files.get(case, [])
        if not is_new:
            done.corrected.append(case)
            pictures[case] = thumbnail_of_files(scan, drafts.file(case), plans.plans, values, ignore)
            continue
        image = draft * 0 if are_absent(scan) else read_images(scan, reader)[0][0]
        pictures[case] = thumbnail(image, draft, sure == ignore, properties["spacing"], colors(values))
        measured[case]["draft"] = {"file": sha256_of(drafts.file(case)), "picture": list(pictures[case])}
        write_json(measured[case], done.folder / MEASURED / f"{case}.json")
    return pictures


def _write_table(
    table: dict[str, dict[str, float]],
    scores: dict[str, float],
    files: dict[str, list[Path]],
    drafts: Drafts,
    done: Suggested,
) -> None:
    """All cases: the chosen ones in their order, then the others, the most disagreed on first."""
    ranks = {case: rank for rank, case in enumerate(done.chosen, 1)}
    classes = list(next(iter(table.values())))
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["rank", "case", "disagreement", *classes, "unlike the labeled scans", "scan", "draft"])
    for case in sorted(table, key=lambda case: (ranks.get(case, len(table) + 1), -scores[case], case)):
        figures = ("" if np.isnan(share) else f"{share:.4f}" for share in (scores[case], *table[case].values()))
        scan, draft = next(iter(files.get(case, [])), ""), drafts.file(case) if case in ranks else ""
        writer.writerow([ranks.get(case, ""), case, *figures, " ".join(done.odd.get(case, [])), scan, draft])
    write_text(stream.getvalue(), done.folder / TABLE)


def _write_page(
    planned: Planned,
    trainer: str,
    table: dict[str, dict[str, float]],
    files: dict[str, list[Path]],
    drafts: Drafts,
    pictures: dict[str, tuple[str, str]],
    done: Suggested,
) -> None:
    names = value_names(planned.dataset.json["labels"])
    page = Page(
        title=f"{planned.dataset.name}: which scans to annotate next",
        lines=[
            f"Compared: {done.members} of {trainer}, over the foreground that they predict. The first scan is the one "
            "with most disagreement; each further one has much, too, and is unlike those before it.",
            f"Correct the drafts in {drafts.folder}, and save them under the same names. Drafts that nobody changed "
            "are not taken for annotations.",
        ],
        share="disagreement",
        legend={name: colors(names)[value] for value, name in names.items()},
        next_command=f"nnUNetv2_crossmatch annotated -d {planned.dataset.name} {shlex.quote(str(drafts.folder))}",
        odd=done.odd,
    )
    shown = [
        Shown(
            case,
            doubt,
            {name: None if np.isnan(share) else share for name, share in table[case].items()},
            next(iter(files.get(case, [])), Path(case)),
            drafts.file(case),
            pictures[case],
            ["the draft has been corrected"] if case in done.corrected else [],
        )
        for case, doubt in done.chosen.items()
    ]
    write_page(page, shown, done.folder / PAGE)
