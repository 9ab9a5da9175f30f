"""Kill unlabeled preprocessing at random instants (SIGKILL), go on with what is left, and count what went wrong.

Works on a copy of the preprocessed folder. Half of the runs find every case to be another of the dataset's scans than
the run before, so that arrays are replaced, too; the manifest is written after each case. After each kill whatever the
manifest calls whole has to load through nnU-Net's dataset class and to equal what a run without kills makes of the scan
that the manifest names; a run that is not killed has to reach its end. Exit code 1 if one of this failed.

example: python scripts/kill_preprocessing.py -d 4 -c 3d_fullres -p nnUNetPlansSmall -np 2 --kills 40
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path
from shutil import copytree, ignore_patterns

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunetv2_crossmatch.nnunet.loaders import UnlabeledDataset
from nnunetv2_crossmatch.preprocessing import unlabeled
from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.listing import list_unlabeled
from nnunetv2_crossmatch.preprocessing.manifest import Manifest
from nnunetv2_crossmatch.utilities.files import INCOMING

KILLED, WRITING, RENAMING = "kills", "while cases were written", "between a case's renames"
ENDED, FAILED = "runs that reached their end", "failures"


def preprocess(arguments: argparse.Namespace, raw: Path, preprocessed: Path, processes: int) -> None:
    unlabeled._SECONDS_BETWEEN_MANIFESTS = 0
    unlabeled.preprocess_unlabeled(planned(arguments, raw, preprocessed), processes)


def planned(arguments: argparse.Namespace, raw: Path, preprocessed: Path) -> Planned:
    dataset = Dataset(raw, preprocessed, load_json(str(preprocessed / "dataset.json")))
    return Planned(dataset, dataset.plans(arguments.p), arguments.c)


def check(folder: Path, reference: Path, made_of: dict[str, str]) -> None:
    """Whatever the manifest calls whole is what the reference has of its scan; an exception ends the process with 1."""
    manifest = Manifest.read(folder)
    for case in filter(manifest.is_whole, manifest.cases):
        data, seg, _, properties = UnlabeledDataset(str(folder), [case]).load_case(case)
        expected = made_of[manifest.cases[case]["source"][0][0]]
        wanted = UnlabeledDataset(str(reference), [expected]).load_case(expected)
        np.testing.assert_array_equal(data[:], wanted[0][:])
        np.testing.assert_array_equal(seg[:], wanted[1][:])
        assert repr(properties) == repr(wanted[3]), case


def kill_often(arguments: argparse.Namespace, base: Path) -> dict[str, int]:
    """Counts of what happened."""
    name = maybe_convert_to_dataset_name(arguments.d)
    source, raw, preprocessed = Path(nnUNet_raw) / name, base / "raw", base / "preprocessed"
    copytree(Path(nnUNet_preprocessed) / name, preprocessed, ignore=ignore_patterns("*_unlabeled", "*_pseudo"))
    folder = planned(arguments, raw, preprocessed).unlabeled_folder
    scans = list_unlabeled(source, load_json(str(source / "dataset.json"))) or {}
    images = [[str(file.resolve()) for file in files] for files in scans.values()]
    made_of = {Path(files[0]).name: case for case, files in zip(scans, images, strict=True)}
    raw.mkdir()
    (raw / "imagesTr").symlink_to((source / "imagesTr").resolve())

    def list_scans(shift: int) -> None:
        shifted = dict(zip(scans, images[shift:] + images[:shift], strict=True))
        (raw / "unlabeled.json").write_text(json.dumps({case: {"images": files} for case, files in shifted.items()}))

    list_scans(0)

    def start(target, *of_target) -> BaseProcess:  # never here: a process that has used blosc2 cannot be forked
        process = multiprocessing.get_context("fork").Process(target=target, args=of_target)
        process.start()
        return process

    start(preprocess, arguments, raw, preprocessed, 1).join()
    reference = folder.rename(base / "reference")
    draw = random.Random(arguments.seed)
    counts = dict.fromkeys((KILLED, WRITING, RENAMING, ENDED, FAILED), 0)
    while counts[KILLED] < arguments.kills:
        list_scans(draw.randrange(2))
        run = start(preprocess, arguments, raw, preprocessed, draw.choice((1, arguments.np)))
        run.join(draw.uniform(0, arguments.seconds))
        run.kill()
        run.join()
        killed, incoming = run.exitcode == -9, list(folder.glob(INCOMING + "*/"))
        counts[KILLED] += killed
        counts[WRITING] += killed and bool(incoming)
        moved = [file for i in incoming for file in i.glob("*.pkl") if not file.with_suffix(".b2nd").exists()]
        counts[RENAMING] += killed and bool(moved)
        counts[ENDED] += run.exitcode == 0
        checked = start(check, folder, reference, made_of)
        checked.join()
        counts[FAILED] += checked.exitcode != 0 or run.exitcode not in (0, -9)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="dataset id or name, planned")
    parser.add_argument("-c", default="3d_fullres", help="configuration")
    parser.add_argument("-p", default="nnUNetPlans", help="plans")
    parser.add_argument("-np", type=int, default=2, help="half of the runs have so many worker processes, the others 1")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=6.0, help="the longest run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=nnUNet_preprocessed, prefix=".killed_") as base:
        counts = kill_often(arguments, Path(base))
    print("\n".join(f"{count:4} {what}" for what, count in counts.items()))
    sys.exit(1 if counts[FAILED] else 0)


if __name__ == "__main__":
    main()
