"""nnUNetv2_crossmatch run."""

import argparse
from typing import TYPE_CHECKING

from nnunetv2_crossmatch.commands.estimate import as_text, measure_all
from nnunetv2_crossmatch.commands.shared import (
    Commands,
    add_arguments,
    add_command,
    as_device,
    find_dataset,
    predict_command,
    say_next,
)

if TYPE_CHECKING:
    import torch

    from nnunetv2_crossmatch.pipeline import Pipeline, Step
    from nnunetv2_crossmatch.preprocessing.dataset import Dataset
    from nnunetv2_crossmatch.trainers.estimate import Cost


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "run",
        "everything from raw scans to an exported model; says what and how long before; after an interruption the same "
        "command goes on",
        "-d 4 -c 3d_fullres --dry-run",
    )
    add_arguments(command, "-d", "-c", "-p", "-f", "-device")
    command.add_argument("-np", type=int, metavar="N", help="worker processes (default: each command's own)")
    command.add_argument("--dry-run", action="store_true", help="only say what would be done, and how long it takes")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.pipeline import OURS, Pipeline
    from nnunetv2_crossmatch.preprocessing.reconcile import prepare_splits

    dataset = find_dataset(arguments.d)
    device = as_device(arguments.device)
    pipeline = Pipeline(dataset, arguments.p, arguments.c, folds_of(dataset, arguments.f), device.type, arguments.np)
    costs = known_costs(pipeline, device)
    steps = pipeline.steps()
    print(*plan_of(steps, costs), sep="\n", flush=True)
    if arguments.dry_run:
        say_next("the same line without --dry-run")
        return
    begun: set[object] = set()
    # a training is begun once, whatever it is called: what changes meanwhile is for the next time
    while step := next((s for s in steps if not s.done and (s.training or s.what) not in begun), None):
        begun.add(step.training or step.what)
        if step.training:
            prepare_splits(dataset)
        if step.training and not costs and (costs := known_costs(pipeline, device)):
            print(*plan_of(steps, costs), sep="\n")
        print(f"\n[{steps.index(step) + 1} of {len(steps)}] {step.command}", flush=True)
        pipeline.do(step)
        steps = pipeline.steps()  # as this one has left them; imagesTs may have come
    if left := [step.command for step in steps if not step.done]:
        raise RuntimeError("\n".join(["these ended without an error, and yet something is left to do:", *left]))
    print("\nDone.", *(f"{step.what}: {step.result}" for step in steps if step.result), sep="\n")
    say_next(predict_command(dataset, arguments.c, arguments.p, OURS, pipeline.folds, device.type))


def folds_of(dataset: "Dataset", folds: "list[int | str] | None") -> "list[int | str]":
    """Those asked for, or all of the split that is there or will be; nothing is written.

    Raises ValueError: see :func:`require_folds`.
    """
    from nnunetv2_crossmatch.preprocessing.content import LABELED
    from nnunetv2_crossmatch.preprocessing.reconcile import known_cases
    from nnunetv2_crossmatch.preprocessing.splits import draw_splits, read_patients, read_splits, require_folds

    splits = read_splits(dataset.preprocessed)
    if not splits:
        patients = read_patients(dataset.require_raw()) or read_patients(dataset.preprocessed)
        splits = draw_splits(known_cases(dataset)[LABELED], patients)
    chosen = list(dict.fromkeys(folds or [*range(len(splits))] or ["all"]))
    require_folds(dataset.name, chosen, len(splits))
    return chosen


def known_costs(pipeline: "Pipeline", device: "torch.device") -> "list[Cost]":
    """Measured once; none before a step can be taken, or when every training has begun and tells by itself."""
    import torch

    from nnunetv2_crossmatch.pipeline import OURS, STOCK

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    costs, planned = pipeline.costs(name), pipeline.planned()
    begun = all(step.training.checkpoints for step in pipeline.steps() if step.training)
    if planned is None or costs or begun:
        return costs
    with pipeline.claimed():
        costs = measure_all(planned, [STOCK, OURS], device)
        pipeline.note_costs(costs, name)
    print(*as_text(costs, device, pipeline.folds[0]), "", sep="\n")
    return costs


def plan_of(steps: "list[Step]", costs: "list[Cost]") -> list[str]:
    """A numbered list of what is done and what will be, each with its command, and the hours of all trainings."""
    from nnunetv2_crossmatch.utilities.durations import duration

    lines, total, unknown = [], [0.0, 0.0], False
    of_trainer = {cost.trainer: cost for cost in costs}
    for number, step in enumerate(steps, 1):
        state = "done" if step.done else "to do"
        if step.training and not step.done:
            cost = of_trainer.get(step.training.trainer)
            left = None if step.stale else step.training.left_to_train()
            if step.training.is_trained and not step.stale:
                left, state = 0.0, f"{state}, only its validation"
            if left is not None:
                seconds = left + (cost.seconds_to_validate(step.training.fold) if cost else 0)
                times = [seconds, seconds] if seconds else []
            elif cost:
                times = sorted(3600 * h for h in cost.hours(step.training.fold))
            else:
                times, unknown = [], True
            total = [sum(both) for both in zip(total, times, strict=True)] if times else total
            state += f", about {' to '.join(dict.fromkeys(map(duration, times)))}" if times else ""
        lines += [f"{number:2} {step.what} ({state})", f"     {step.command}"]
    if unknown:
        return [*lines, "How long the trainings take is measured as soon as the scans are preprocessed."]
    together = " to ".join(dict.fromkeys(map(duration, total)))
    return [*lines, f"Trainings that are not done: about {together}."] if total[1] else lines
