"""What to run again when scans became labeled ones."""

import shlex
from pathlib import Path

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.utilities.files import read_json


def commands_again(dataset: Dataset) -> list[str]:
    """nnU-Net's commands that preprocess with the plans there are and train what was trained, the first to type first.

    The plans are kept, so that models before and after can be compared; other plans are the user's choice.
    """
    number = convert_dataset_name_to_id(dataset.name)
    commands = []
    configurations = _preprocessed(dataset)
    for plans, names in configurations.items():
        commands.append(f"nnUNetv2_preprocess -d {number} -plans_name {shlex.quote(plans)} -c {' '.join(names)}")
    if not commands:
        return [f"nnUNetv2_plan_and_preprocess -d {number}", f"nnUNetv2_train {number} 3d_fullres 0"]
    trained = _trained(dataset.name)
    if not trained:
        plans, names = next(iter(configurations.items()))
        commands.append(f"nnUNetv2_train {number} {names[-1]} 0 -p {plans}")
    for runs in trained.values():
        others = ", ".join(str(run.fold) for run in runs[1:])
        commands.append(runs[0].train_command() + (f"      # and fold {others}" if others else ""))
    return commands


def _preprocessed(dataset: Dataset) -> dict[str, list[str]]:
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
