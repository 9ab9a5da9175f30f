"""nnUNetv2_crossmatch export."""

import argparse
from pathlib import Path

from nnunetv2_crossmatch.commands.shared import Commands, add_arguments, add_command, say_next


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "export",
        "write the trained model as a zip that nnU-Net installs and uses without this package",
        "-d 4 -c 3d_fullres -tr nnUNetTrainerCrossMatch -o crossmatch.zip",
    )
    command.description = (
        f"{command.description}.\n"
        "nnUNetv2_install_pretrained_model_from_zip puts it into nnUNet_results as a model of nnUNetTrainer and\n"
        "overwrites the one of the same dataset, plans and configuration; to keep that, set another nnUNet_results."
    )
    add_arguments(command, "-d", "-c", "-tr", "-p", "-f", "-chk")
    command.add_argument("-o", type=Path, required=True, metavar="FILE.zip", help="the zip; it must not exist yet")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.export import export_model
    from nnunetv2_crossmatch.preprocessing.dataset import dataset_name

    dataset = dataset_name(arguments.d)
    model = (arguments.c, arguments.tr, arguments.p)
    folds, postprocessing = export_model(dataset, *model, arguments.f, arguments.chk, arguments.o)
    print(f"Written: {arguments.o}. On the other machine:")
    commands = [
        f"nnUNetv2_install_pretrained_model_from_zip {arguments.o.name}",
        f"nnUNetv2_predict -i IN -o OUT -d {dataset} -c {arguments.c} -p {arguments.p} -f {' '.join(map(str, folds))} "
        f"-chk {arguments.chk}",
    ]
    if postprocessing:
        commands.append(f"nnUNetv2_apply_postprocessing -i OUT -o OUT_PP -pp_pkl_file $nnUNet_results/{postprocessing}")
    say_next(*commands)
