"""Write plans with a small network next to existing ones, for trying things on a CPU.

The preprocessed data stay valid: only network, patch and batch size change.
example: python scripts/small_plans.py -d 4 -p nnUNetPlans -o nnUNetPlansSmall -c 3d_fullres \
             --features 8 16 32 64 --patch 24 32 24 --batch 2
"""

import argparse
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name


def shrink(configuration: dict, features: list[int], patch: list[int], batch: int) -> None:
    """Give a plans configuration as many stages as ``features``, halving every axis between them."""
    kwargs = configuration["architecture"]["arch_kwargs"]
    dimensions, stages = len(patch), len(features)
    kwargs.update(
        n_stages=stages,
        features_per_stage=features,
        kernel_sizes=[[3] * dimensions] * stages,
        strides=[[1] * dimensions] + [[2] * dimensions] * (stages - 1),
        n_conv_per_stage_decoder=[kwargs["n_conv_per_stage_decoder"][0]] * (stages - 1),
    )
    blocks = "n_conv_per_stage" if "n_conv_per_stage" in kwargs else "n_blocks_per_stage"
    kwargs[blocks] = [min(2, kwargs[blocks][0])] * stages
    configuration.update(patch_size=patch, batch_size=batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="dataset id or name")
    parser.add_argument("-p", default="nnUNetPlans", help="plans to start from")
    parser.add_argument("-o", default="nnUNetPlansSmall", help="plans to write")
    parser.add_argument("-c", required=True, help="configuration to shrink")
    parser.add_argument("--features", type=int, nargs="+", required=True, help="channels of each stage")
    parser.add_argument("--patch", type=int, nargs="+", required=True, help="divisible by 2^(stages - 1)")
    parser.add_argument("--batch", type=int, default=2)
    arguments = parser.parse_args()

    folder = Path(nnUNet_preprocessed) / maybe_convert_to_dataset_name(arguments.d)
    target = folder / f"{arguments.o}.json"
    plans = load_json(str(target if target.exists() else folder / f"{arguments.p}.json"))
    plans["plans_name"] = arguments.o
    shrink(plans["configurations"][arguments.c], arguments.features, arguments.patch, arguments.batch)
    save_json(plans, str(target), sort_keys=False)


if __name__ == "__main__":
    main()
