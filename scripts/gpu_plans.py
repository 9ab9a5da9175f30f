"""Plans of networks as users train them, by nnU-Net's own planners, for benchmark.py --synthetic; needs no data.

991: 2d of ACDC. 992: 3d_fullres of 128x128x128 voxels and six levels. 993: the same scans, ResEnc L. 994: for a GPU of
11 GB. 995: ResEnc XL. With --toy they are tiny, and FOLDER/Toy holds scans for gap.py's bench of that name.

example: python scripts/gpu_plans.py FOLDER
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SCANS = 200  # nnU-Net limits the batch by their number
ISOTROPIC = ((1.0, 1.0, 1.0), (150, 150, 150))
PLANS = {  # dataset: configuration, planner, GB of the GPU planned for, spacing in mm and median shape
    "Dataset991_ACDC": ("2d", "ExperimentPlanner", 8, ((10.0, 1.5625, 1.5625), (9, 256, 216))),
    "Dataset992_Isotropic": ("3d_fullres", "ExperimentPlanner", 8, ISOTROPIC),
    "Dataset993_ResEncL": ("3d_fullres", "nnUNetPlannerResEncL", 24, ISOTROPIC),
    "Dataset994_11GB": ("3d_fullres", "ExperimentPlanner", 11, ISOTROPIC),
    "Dataset995_ResEncXL": ("3d_fullres", "nnUNetPlannerResEncXL", 40, ISOTROPIC),
}


def write_scans(folder: Path, count: int, ending: str = "_0000.nii.gz") -> None:
    """Noise with a bright cube, and dataset.json; ``ending`` of the images' names."""
    rng, label = np.random.default_rng(0), np.pad(np.ones((8, 8, 8), np.uint8), 4)
    for i in range(count):
        image = rng.normal(100, 20, label.shape).astype(np.float32) + 50 * label
        for part, array, end in (("images", image, ending), ("labels", label, ".nii.gz")):
            (folder / f"{part}Tr").mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{part}Tr" / f"scan{i}{end}"))
    labels = {"background": 0, "first": 1, "second": 2, "third": 3}
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": count, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))


def make_plans(base: Path, name: str, *, toy: bool) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments
    from small_plans import shrink

    configuration, planner, gigabytes, (spacing, shape) = PLANS[name]
    raw, preprocessed = base / "raw" / name, base / "preprocessed" / name
    write_scans(raw, 1)
    dataset = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**dataset, "numTraining": SCANS}))
    data = preprocessed / f"nnUNetPlans_{configuration}"
    data.mkdir(parents=True, exist_ok=True)
    (data / "noise.b2nd").touch()  # nnU-Net asks for the kind of file
    fingerprint = {
        "spacings": [spacing] * SCANS,
        "shapes_after_crop": [shape] * SCANS,
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {},
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    plan_experiments([int(name[7:10])], planner, gigabytes, overwrite_plans_name="nnUNetPlans")
    if toy:
        file = preprocessed / "nnUNetPlans.json"
        plans = json.loads(file.read_text())
        # with two levels nnU-Net's loss is nan
        patch = [16] * (2 if configuration == "2d" else 3)
        shrink(plans["configurations"][configuration], features=[4, 8, 8], patch=patch, batch=2)
        file.write_text(json.dumps(plans))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    base = arguments.folder.resolve()
    for part in ("raw", "preprocessed", "results"):  # nnU-Net reads these when it is imported
        (base / part).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{part}"] = str(base / part)
    os.environ["nnUNet_n_proc_DA"] = "1"  # planning divides by it
    for name in PLANS:
        make_plans(base, name, toy=arguments.toy)
    if arguments.toy:
        write_scans(base / "Toy", 6, ".nii.gz")  # as in the Decathlon


if __name__ == "__main__":
    main()
