"""nnU-Net's dataset.json, which people write by hand."""

from pathlib import Path

from nnunetv2_crossmatch.utilities.errors import DatasetError
from nnunetv2_crossmatch.utilities.files import read_json


def channel_names(dataset_json: dict) -> list[str]:
    """In their order; older files say modality, as nnU-Net reads them."""
    return list((dataset_json.get("channel_names") or dataset_json["modality"]).values())


def read_dataset_json(file: Path, needs_channels: bool = True) -> dict:
    """What it holds, after making sure that what is read of it everywhere is there.

    Raises:
        DatasetError: no JSON; no labels, file_ending or (unless ``needs_channels`` is False) channel_names, or not in
            their form.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise DatasetError([f'{file} is not of the form {{"channel_names": ..., "labels": ..., ...}}.'])
    labels, ending = content.get("labels"), content.get("file_ending")
    channels = content.get("channel_names") or content.get("modality")  # as nnU-Net: older files say modality
    forms = {
        'labels, e.g. {"background": 0, "tumor": 1}': isinstance(labels, dict)
        and labels.get("background") == 0
        and all(map(_is_label, labels.values())),
        'file_ending, e.g. ".nii.gz"': isinstance(ending, str) and ending.startswith("."),
        'channel_names, e.g. {"0": "CT"}': not needs_channels
        or (isinstance(channels, dict) and bool(channels) and all(isinstance(name, str) for name in channels.values())),
    }
    if wrong := [form for form, is_right in forms.items() if not is_right]:
        raise DatasetError(f"{file} has no {form}. Add or correct it." for form in wrong)
    return content


def _is_label(value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(one, int | float) and float(one).is_integer() for one in values)
