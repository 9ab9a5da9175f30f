"""A comparison as text, as JSON and as one page that opens anywhere."""

import math
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from scipy.stats import rankdata

from nnunetv2_crossmatch.comparison import figures
from nnunetv2_crossmatch.comparison.compare import Comparison
from nnunetv2_crossmatch.comparison.paired import TIE, Difference, by_unit, class_columns, format_p, scores
from nnunetv2_crossmatch.comparison.runs import began_with, made_with, teacher_folders
from nnunetv2_crossmatch.evaluation.case import METRICS
from nnunetv2_crossmatch.evaluation.summary import Evaluation
from nnunetv2_crossmatch.nnunet.images import find_reader
from nnunetv2_crossmatch.nnunet.labels import read_labels
from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.preprocessing.image_folder import group_channels
from nnunetv2_crossmatch.preprocessing.listing import labeled_scans
from nnunetv2_crossmatch.self_training.names import Round
from nnunetv2_crossmatch.utilities.dataset_json import read_dataset_json
from nnunetv2_crossmatch.utilities.errors import some
from nnunetv2_crossmatch.utilities.files import write_json as write_whole
from nnunetv2_crossmatch.utilities.tables import aligned, percent
from nnunetv2_crossmatch.utilities.versions import versions

UNFOLDED = 20  # rows of a table; the others are folded away
SHOWN = 5  # cases that improved most, and as many that were harmed most
CAVEAT = (
    "The intervals are over cases. Another seed of the same training gives another difference, too; one run of each "
    "trainer does not show how much."
)
_CURVES = {
    "dice": "mean pseudo Dice on validation patches",
    "train_loss": "training loss (of nnU-Net's labeled batch)",
    "val_loss": "validation loss",
}
_PSEUDO_LABELS = {
    "unlabeled/pseudo_label_dice": "mean Dice of the network's labels of unlabeled scans, by hidden labels"
}


def format_text(comparison: Comparison) -> str:
    """Scores, differences, costs and verdict, for a terminal."""
    lines: list[str] = []
    for name, title in comparison.titles.items():
        titles = (f"Dice [%], {title}", "mean", "median", "difference", "95 % interval", "p", "better/same/worse")
        rows = [
            [row[key] for key in ("trainer", "mean", "median", "difference", "interval", "p", "counts")]
            for row in table(comparison, name)
        ]
        lines += [*aligned([titles, *rows], right=range(1, 7)), ""]
    if missing := [_sentence(odd) for odd in missing_objects(comparison)]:
        lines += missing[:UNFOLDED]
        if len(missing) > UNFOLDED:
            lines.append(f"and {len(missing) - UNFOLDED} more such lines, on the page")
        lines.append("")
    if of_seeds := seeds(comparison):
        numbers = [f"seed {number}" for number in range(1, len(of_seeds[0]["means"]) + 1)]
        rows = [["mean Dice [%]", *numbers, "largest difference"]]
        rows += [[row["trainer"], *row["means"], row["spread"]] for row in of_seeds]
        lines += [*aligned(rows, right=range(1, len(numbers) + 2)), ""]
    if ranks_of := ranking(comparison):
        ranks = ", ".join(f"{row['trainer']} {row['rank']}" for row in ranks_of)
        lines += [f"mean rank over {comparison.noun}, 1 is best: {ranks}", ""]
    of_costs = [
        [row["trainer"], f"{row['hours']} hours on {row['device']}, peak memory {row['memory']}"]
        for row in costs(comparison)
    ]
    lines += [*aligned(of_costs), ""]
    lines += [f"warning: {warning}" for warning in comparison.warnings]
    lines += [f"{trainer}: {verdict.sentence}" for trainer, verdict in comparison.verdicts.items()]
    lines.append(caveat(comparison))
    return "\n".join(lines)


def table(comparison: Comparison, name: str) -> list[dict[str, str]]:
    """Rows of one class: each model's Dice and its difference to the first."""
    rows = []
    for model in comparison.models:
        of_units = by_unit(scores(model.evaluation), comparison.units)  # (units, classes, metrics)
        of_units = of_units[:, class_columns(model.evaluation)[name]].mean(1)
        means, median = of_units.mean(0), np.median(of_units[:, METRICS.index("dice")])
        row = {
            "trainer": model.trainer,
            "mean": percent(means[METRICS.index("dice")]),
            "median": percent(median),
            "hd95": f"{means[METRICS.index('hd95_mm')]:.1f}",
            **dict.fromkeys(("difference", "interval", "p", "counts"), ""),
        }
        if model.trainer in comparison.differences:
            d = comparison.differences[model.trainer][name]["dice"]
            row |= {
                "difference": percent(d.mean, "+"),
                "interval": "-" if math.isnan(d.low) else f"{percent(d.low, '+')} to {percent(d.high, '+')}",
                "p": format_p(d.p),
                "counts": f"{d.wins}/{d.ties}/{d.losses}",
            }
        rows.append(row)
    return rows


def seeds(comparison: Comparison) -> list[dict[str, Any]]:
    """Each model's mean Dice in every seed, and how far they lie apart; [] with one seed."""
    dices = {model.trainer: comparison.dice_of_seeds(model) for model in comparison.models}
    return [
        {"trainer": trainer, "means": list(map(percent, of_seeds)), "spread": percent(np.ptp(of_seeds))}
        for trainer, of_seeds in dices.items()
        if len(of_seeds) > 1
    ]


def caveat(comparison: Comparison) -> str:
    """What the figures are of, and what they do not show."""
    if (count := len(comparison.models[0].seeds)) == 1:
        return CAVEAT
    return (
        f"Scores and hours are means over {count} seeds; the tables' intervals are over cases. An object is missed, or "
        "invented, if at least one seed does so."
    )


def ranking(comparison: Comparison) -> list[dict[str, str]]:
    """The models by their mean rank over cases or patients in the mean Dice of the classes, rounded to ``TIE``.

    Ties share their ranks. [] for two models, and where units are too few.
    """
    if len(comparison.models) < 3 or comparison.few:
        return []
    dices = [
        by_unit(scores(model.evaluation)[:, :, METRICS.index("dice")].mean(1), comparison.units)
        for model in comparison.models
    ]
    ranks = rankdata(-np.round(np.divide(dices, TIE)), axis=0)  # (models, units)
    best = ranks == ranks.min(0)
    return [
        {
            "trainer": comparison.models[i].trainer,
            "rank": f"{ranks[i].mean():.2f}",
            "best": f"{best[i].sum()} of {ranks.shape[1]}",
            "mean": percent(dices[i].mean()),
            "hours": f"{comparison.models[i].hours:.2f}",
        }
        for i in np.argsort(ranks.mean(1), kind="stable")
    ]


def missing_objects(comparison: Comparison) -> list[dict[str, Any]]:
    """The cases in which a class was missed or invented, ``of`` so many that have or lack it, per class and model."""
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(comparison.models[0].evaluation.classes):
        for model in comparison.models:
            there, missed = (of[:, i] for of in (model.evaluation.in_reference, model.evaluation.missed))
            for what, scans in (("missed", there), ("invented", ~there)):
                if found := [case for case, odd in zip(model.evaluation.cases, missed & scans, strict=True) if odd]:
                    row = {"trainer": model.trainer, "class": name, "what": what, "of": int(scans.sum())}
                    rows.append({**row, "cases": found})
    return rows


def _sentence(odd: dict[str, Any]) -> str:
    verb, have = ("misses", "have") if odd["what"] == "missed" else ("invents", "lack")
    of = f"{len(odd['cases'])} of the {odd['of']} scans that {have} it"
    return f"{odd['trainer']} {verb} {odd['class']} in {of}: {some(odd['cases'])}."


def costs(comparison: Comparison) -> list[dict[str, str]]:
    """Hours (times devices) and peak memory of each model, as its runs recorded them."""
    rows = []
    for model in comparison.models:
        others = sorted({trainer for run in model.runs for trainer in run.counts})
        peak = model.peak_memory
        rows.append(
            {
                "trainer": model.trainer,
                "epochs": str(max(len(run.log.epochs) for run in model.runs)),
                "hours": f"{model.hours:.2f}" + (f" (with {', '.join(others)})" if others else ""),
                "memory": "not recorded" if peak is None else f"{peak / 2**30:.1f} GiB",
                "device": ", ".join(sorted({run.device for run in model.runs})),
            }
        )
    return rows


def write_json(comparison: Comparison, file: Path) -> None:
    """Verdicts, differences, each case's Dice, costs; null where a number is undefined."""
    of, models = comparison.reference_run, comparison.models
    costs = {model.trainer: {"gpu_hours": model.hours, "peak_memory_bytes": model.peak_memory} for model in models}
    content = {
        "dataset": of.dataset,
        "configuration": of.configuration,
        "plans": of.plans,
        "folds": comparison.folds,
        "cases": "test scans" if comparison.test else "validation cases",
        "reference": models[0].trainer,
        "verdicts": {trainer: asdict(verdict) for trainer, verdict in comparison.verdicts.items()},
        "caveat": caveat(comparison),
        "warnings": comparison.warnings,
        "differences": {trainer: _differences(classes) for trainer, classes in comparison.differences.items()},
        "missing_objects": missing_objects(comparison),
        "costs": costs,
        "dice_of_seeds": {model.trainer: comparison.dice_of_seeds(model).tolist() for model in models},
        "dice": {model.trainer: _dice(model.evaluation) for model in models},
        "versions": _versions(comparison),
    }
    write_whole(content, file)


def _differences(classes: dict[str, dict[str, Difference]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Class -> metric -> each figure of the difference."""
    return {
        name: {metric: {key: _known(value) for key, value in asdict(d).items()} for metric, d in metrics.items()}
        for name, metrics in classes.items()
    }


def _dice(evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
    """Case -> class -> Dice."""
    dices = evaluation.values[:, :, METRICS.index("dice")].tolist()
    return {
        case: dict(zip(evaluation.classes, map(_known, of_case), strict=True))
        for case, of_case in zip(evaluation.cases, dices, strict=True)
    }


def write_html(comparison: Comparison, raw_folder: Path, command: str, file: Path) -> None:
    """One page without scripts or links to elsewhere.

    Args:
        raw_folder: of the dataset; pictures of scans need its images.
        command: that made this comparison.
    """
    environment = Environment(
        loader=PackageLoader(__package__, ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    classes = read_labels(read_dataset_json(raw_folder / "dataset.json")).classes
    tables = [(title, table(comparison, name)) for name, title in comparison.titles.items()]
    unfolded = max(1, UNFOLDED // len(comparison.models))
    commands = [*_commands(comparison), command]
    page = environment.get_template("report.html").render(
        comparison=comparison,
        caveat=caveat(comparison),
        seeds=seeds(comparison),
        tables=tables[:unfolded],
        unit="pixels" if comparison.models[0].evaluation.without_spacing else "mm",
        folded_tables=tables[unfolded:],
        missing=[_sentence(odd) for odd in missing_objects(comparison)],
        unfolded=UNFOLDED,
        ranking=ranking(comparison),
        costs=costs(comparison),
        differences=figures.plot_differences(comparison),
        distributions=figures.plot_distributions(comparison),
        gain=figures.plot_gain(comparison),
        curves=figures.plot_curves(comparison.models, _CURVES),
        pseudo_labels=figures.plot_curves(comparison.models, _PSEUDO_LABELS),
        scans=_scans(comparison, raw_folder),
        legend=list(zip(classes, figures.class_colors(len(classes)), strict=True)),
        settings={model.trainer: model.runs[0].constants for model in comparison.models},
        counts=_counts(comparison),
        commands=commands,
        long_list=len(commands) > UNFOLDED,
        versions=_versions(comparison),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")


def _scans(comparison: Comparison, raw_folder: Path) -> list[dict]:
    """Of each model but the first, the cases that improved most and those that were harmed most, with pictures."""
    dataset = read_dataset_json(raw_folder / "dataset.json")
    classes = read_labels(dataset).classes
    images = {}
    if comparison.test:
        images = group_channels(raw_folder / "imagesTs", dataset)
    elif "dataset" in dataset or (raw_folder / "imagesTr").is_dir():
        images = labeled_scans(raw_folder, dataset)
    cases = comparison.models[0].evaluation.cases

    def picture(case: str, shown: int) -> tuple[str, str]:
        image = images[case][0] if case in images else None
        if image is None or not image.exists():
            return "", "its image is not at hand"
        reader = find_reader(dataset, [image])()
        return figures.draw_scan(figures.read_scan(comparison, case, image, reader), shown, classes)

    groups = []
    for number, model in enumerate(comparison.models[1:], 1):
        change = comparison.dice_change(model).mean(1)
        order = np.argsort(change)
        for title, chosen in (
            ("most improved", [i for i in order[::-1] if change[i] > 0][:SHOWN]),
            ("most harmed", [i for i in order if change[i] < 0][:SHOWN]),
        ):
            entries = [(cases[i], percent(change[i], "+"), *picture(cases[i], number)) for i in chosen]
            groups.append({"trainer": model.trainer, "title": title, "cases": entries})
    return groups


def _counts(comparison: Comparison) -> dict[str, str]:
    runs = [run for model in comparison.models for run in model.runs]
    labeled = sorted({run.log.split[0] for run in runs if run.log.split is not None})
    unlabeled = sorted({len(run.training["unlabeled"]) for run in runs if run.training})
    cases = f"{len(comparison.truths)}"
    if comparison.noun == "patients":
        cases += f" of {len(set(comparison.units))} patients"
    return {
        "labeled cases in a training": " to ".join(map(str, dict.fromkeys(labeled[:1] + labeled[-1:]))) or "all",
        "unlabeled scans in a training": " to ".join(map(str, dict.fromkeys(unlabeled[:1] + unlabeled[-1:]))) or "none",
        "test scans" if comparison.test else "validation cases": cases,
        "folds": ", ".join(map(str, comparison.folds)),
    }


def _commands(comparison: Comparison) -> list[str]:
    """That train the models where there is CUDA, as nnU-Net's own; what a training needs comes before it."""
    commands = []
    for model in comparison.models:
        for run in model.runs:
            commands += _training_commands(run.folder)
    return list(dict.fromkeys(commands))


def _training_commands(run: RunFolder) -> list[str]:
    made_by, round_ = made_with(run), Round.parse(run.trainer)
    if not made_by:
        stock = began_with(run)
        return [of.train_command(device="cuda") for of in (stock, run) if of]
    teachers = [teacher for teacher in teacher_folders(run, made_by) if teacher != run]
    commands = [command for teacher in teachers for command in _training_commands(teacher)]
    what = f"-d {run.dataset} -c {made_by['configuration']} -p {made_by['plans']} -f {made_by['fold']}"
    how = f"--threshold {made_by['threshold']:g} -chk {made_by['checkpoint']}"
    if round_:
        rounds = f"-tr {round_.teacher} --student {round_.student} --rounds {round_.number}"
        return [*commands, f"nnUNetv2_crossmatch self-train {what} {rounds} {how}"]
    label = f"nnUNetv2_crossmatch pseudo-label {what} -tr {made_by['trainer']} {how}"
    return [*commands, label, run.train_command(device="cuda")]


def _versions(comparison: Comparison) -> dict[str, str]:
    """Of the packages that trained, as far as recorded, and that compare."""
    trained = {
        ", ".join(f"{name} {number}" for name, number in run.training["versions"].items())
        for model in comparison.models
        for run in model.runs
        if run.training
    }
    return {
        "trained with": "; ".join(sorted(trained)) or "not recorded",
        "compared with": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
