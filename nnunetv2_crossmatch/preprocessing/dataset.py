"""A dataset where nnU-Net keeps it, and one configuration of its plans."""

from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id, maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_crossmatch.preprocessing.listing import has_training_scans
from nnunetv2_crossmatch.preprocessing.manifest import plans_stamp
from nnunetv2_crossmatch.utilities.dataset_json import channel_names, read_dataset_json
from nnunetv2_crossmatch.utilities.errors import DatasetError, some
from nnunetv2_crossmatch.utilities.near import did_you_mean, nearest


def _planned_with(dataset_json: dict) -> dict:
    """What the preprocessed labeled scans depend on; not what labels and channels are called."""
    labels = dataset_json["labels"]
    return {
        "number of channels": len(channel_names(dataset_json)),
        "labels": sorted(labels.values(), key=str),
        "ignore": labels.get("ignore"),
        **{
            key: dataset_json.get(key)
            for key in ("regions_class_order", "file_ending", "overwrite_image_reader_writer")
        },
    }


def dataset_name(name_or_id: str) -> str:
    """A dataset's name by its name or id.

    Raises:
        RuntimeError: nnU-Net's: there is no dataset at all, or more than one of the id.
        ValueError: there is none of that name or id; says which may be meant.
    """
    there = sorted(
        {
            found.name
            for folder in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results)
            if folder.is_set()
            for found in Path(folder).glob("Dataset*")
        }
    )
    short = {name.partition("_")[2]: name for name in there}  # Liver
    number = f"Dataset{int(name_or_id):03d}" if name_or_id.isdecimal() else None
    known = any(name.startswith(number) for name in there) if number else name_or_id in there
    if known or not there:
        return maybe_convert_to_dataset_name(name_or_id)
    meant = None if number else nearest(name_or_id.partition("_")[2] or name_or_id, short)
    hint = did_you_mean(meant and short[meant]) or f" There are: {some(there)}."
    raise ValueError(f"There is no dataset {name_or_id}.{hint}")


def raw_folder_at_hand(name: str) -> Path | None:
    """A dataset's raw folder, None where it is not at hand; perhaps only test scans are."""
    raw = Path(nnUNet_raw) / name if nnUNet_raw.is_set() else None
    return raw if raw is not None and has_training_scans(raw) else None


@dataclass(frozen=True)
class Dataset:
    """One dataset's folders.

    raw: ``nnUNet_raw/DatasetXXX_NAME``; None where only the preprocessed folder is at hand.
    preprocessed: ``nnUNet_preprocessed/DatasetXXX_NAME``; need not exist yet.
    json: ``dataset.json``.
    """

    raw: Path | None
    preprocessed: Path
    json: dict

    @property
    def id(self) -> int:
        """Which nnU-Net's commands for planning and preprocessing take; the others take its name, too."""
        return convert_dataset_name_to_id(self.name)

    @classmethod
    def find(cls, name_or_id: str) -> "Dataset":
        """A raw dataset by its name or id, as in nnU-Net's commands.

        Raises:
            RuntimeError: nnU-Net's: nnUNet_raw is not set.
            ValueError: see :func:`dataset_name`.
            FileNotFoundError: its raw folder has no dataset.json.
            DatasetError: it is not of its form.
        """
        name = dataset_name(name_or_id)
        file = Path(nnUNet_raw) / name / "dataset.json"
        if not file.exists():
            raise FileNotFoundError(f"There is no {file}. Set nnUNet_raw to where the raw scans of {name} are.")
        return cls(file.parent, Path(nnUNet_preprocessed) / name, read_dataset_json(file))

    @classmethod
    def find_preprocessed(cls, name_or_id: str) -> "Dataset":
        """A preprocessed dataset; without a raw folder where that is not at hand.

        Raises:
            ValueError: see :func:`dataset_name`.
            FileNotFoundError: it is not preprocessed.
            DatasetError: its dataset.json is not of its form.
        """
        name = dataset_name(name_or_id)
        preprocessed = Path(nnUNet_preprocessed) / name
        if not (file := preprocessed / "dataset.json").exists():
            number = convert_dataset_name_to_id(name)
            raise FileNotFoundError(f"There is no {file}. Run nnUNetv2_plan_and_preprocess -d {number}.")
        return cls(raw_folder_at_hand(name), preprocessed, read_dataset_json(file))

    @property
    def name(self) -> str:
        return self.preprocessed.name

    def require_raw(self) -> Path:
        """The raw folder.

        Raises:
            ValueError: it is not at hand.
        """
        if self.raw is None:
            raise ValueError(f"The raw scans of {self.name} are not here. Set nnUNet_raw to where they are.")
        return self.raw

    def require_unchanged(self) -> None:
        """Raises DatasetError: what dataset.json says of the scans is not what was planned and preprocessed."""
        planned = self.preprocessed / "dataset.json"
        if self.raw is None or not planned.exists() or not (self.raw / "dataset.json").exists():
            return
        before, now = (_planned_with(read_dataset_json(file)) for file in (planned, self.raw / "dataset.json"))
        if changed := [key for key in now if before[key] != now[key]]:
            raise DatasetError(
                [
                    f"{self.raw / 'dataset.json'} has changed since the dataset was planned "
                    f"({', '.join(f'{key}: {before[key]}, now {now[key]}' for key in changed)}). Undo that, or "
                    f"plan again: nnUNetv2_plan_and_preprocess -d {self.id}; then train again."
                ]
            )

    def plans(self, identifier: str) -> PlansManager:
        """Raises ValueError: there are none of that name."""
        file = self.preprocessed / f"{identifier}.json"
        if not file.exists():
            there = [other.stem for other in self.preprocessed.glob("*.json") if _are_plans(other)]
            hint = did_you_mean(nearest(identifier, there))
            raise ValueError(f"There is no {file}. Run nnUNetv2_plan_and_preprocess -d {self.id}, or see -p.{hint}")
        return PlansManager(str(file))


def _are_plans(file: Path) -> bool:
    return '"configurations"' in file.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Planned:
    """A dataset with one configuration of one of its plans, e.g. 3d_fullres."""

    dataset: Dataset
    plans: PlansManager
    configuration_name: str

    @property
    def configuration(self) -> ConfigurationManager:
        """Raises ValueError: the plans have none of that name."""
        there = self.plans.available_configurations
        if self.configuration_name not in there:
            hint = did_you_mean(nearest(self.configuration_name, there))
            raise ValueError(f"-c {self.configuration_name}: {self.plans.plans_name} has {', '.join(there)}.{hint}")
        return self.plans.get_configuration(self.configuration_name)

    @property
    def unlabeled_folder(self) -> Path:
        """``nnUNet_preprocessed/DatasetXXX_NAME/<data_identifier>_unlabeled``."""
        return self.dataset.preprocessed / f"{self.configuration.data_identifier}_unlabeled"

    @property
    def stamp(self) -> str:
        """See :func:`plans_stamp`."""
        return plans_stamp(self.plans, self.configuration)

    def command(self, name: str) -> str:
        """A command of this package for it."""
        return (
            f"nnUNetv2_crossmatch {name} -d {self.dataset.name} -c {self.configuration_name} -p {self.plans.plans_name}"
        )
