"""What to run again when scans became labeled ones."""

import shlex
from pathlib import Path

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.self_training.names import STUDENT, Round
from nnunetv2_crossmatch.self_training.record import FOLDER
from nnunetv2_crossmatch.utilities.devices import device_option
from nnunetv2_crossmatch.utilities.files import read_json


def commands_again(dataset: Dataset) -> list[str]:
    """nnU-Net's commands that preprocess with the plans there are and train what was trained, the first to type first.

    The plans are kept, so that models before and after can be compared; other plans are the user's choice.
    """
    number = dataset.id
    commands = []
    configurations = preprocessed_configurations(dataset)
    for plans, names in configurations.items():
        commands.append(f"nnUNetv2_preprocess -d {number} -plans_name {shlex.quote(plans)} -c {' '.join(names)}")
    if not commands:
        return [f"nnUNetv2_plan_and_preprocess -d {number}", f"nnUNetv2_train {number} 3d_fullres 0{device_option()}"]
    every = _trained(dataset.name)
    trained = {model: runs for model, runs in every.items() if not _learns_from_labels(runs[0].trainer)}
    if not every:
        plans, names = next(iter(configurations.items()))
        commands.append(f"nnUNetv2_train {number} {names[-1]} 0 -p {plans}{device_option()}")
    # whatever goes on from a finished model comes after it
    for runs in sorted(trained.values(), key=lambda runs: ("FromStock" in runs[0].trainer, runs[0].trainer)):
        others = ", ".join(str(run.fold) for run in runs[1:])
        commands.append(runs[0].train_command() + (f"      # and fold {others}" if others else ""))
    students = [runs for model, runs in every.items() if model not in trained]
    return commands + list(dict.fromkeys(line for runs in students for line in _label_again(dataset, runs)))


def _learns_from_labels(trainer: str) -> bool:
    """Whether it trains on pseudo-labels, which have to be made anew first."""
    return trainer.startswith(STUDENT)


def _label_again(dataset: Dataset, runs: list[RunFolder]) -> list[str]:
    """Commands that label for a student's folds and say how to train it, or that do both for a round."""
    first = runs[0]
    what = f"-d {dataset.name} -c {first.configuration} -p {first.plans} -f {' '.join(str(run.fold) for run in runs)}"
    if made := Round.parse(first.trainer):
        folders = first.model_folder.parent.glob(f"{made.student}_round*_of_{made.teacher}__*")
        last = max(its.number for folder in folders if (its := Round.parse(folder.name.split("__")[0])))
        return [f"nnUNetv2_crossmatch self-train {what} -tr {made.teacher} --student {made.student} --rounds {last}"]
    of_teachers = (dataset.require_raw() / FOLDER).glob(f"*__{first.plans}__{first.configuration}")
    teachers = [name for folder in sorted(of_teachers) if STUDENT not in (name := folder.name.split("__")[0])]
    return [f"nnUNetv2_crossmatch pseudo-label {what} -tr {teacher}" for teacher in teachers or ["nnUNetTrainer"]]


def preprocessed_configurations(dataset: Dataset) -> dict[str, list[str]]:
    """{plans: configurations} of which labeled cases are preprocessed; a folder that several share is named once."""
    found: dict[str, list[str]] = {}
    seen = set()
    files = dataset.preprocessed.glob("*.json")
    # first the plans that a folder is called after
    for file in sorted(files, key=lambda file: (file.stem != "nnUNetPlans", len(file.name), file.name)):
        content = read_json(file)
        if not (isinstance(content, dict) and {"plans_name", "configurations"} <= content.keys()):
            continue
        plans = PlansManager(content)
        for name in sorted(content["configurations"]):
            folder = dataset.preprocessed / plans.get_configuration(name).data_identifier
            if folder.is_dir() and folder not in seen:
                seen.add(folder)
                found.setdefault(plans.plans_name, []).append(name)
    return found


def _trained(dataset: str) -> dict[str, list[RunFolder]]:
    """Finished runs by model; none where nnUNet_results is not set."""
    if not nnUNet_results.is_set():
        return {}
    runs: dict[str, list[RunFolder]] = {}
    for folder in sorted((Path(nnUNet_results) / dataset).glob("*__*__*/fold_*")):
        if (run := RunFolder(folder)).is_trained:
            runs.setdefault(run.model_folder.name, []).append(run)
    return runs
