"""Installed into nnU-Net's trainer folder, where nnU-Net looks trainers up; see pyproject.toml.

Also the file to name in ``nnUNet_extTrainer`` for an nnU-Net that is itself an editable clone.
"""


def __getattr__(name: str) -> type:
    if not name.startswith("nnUNetTrainer"):
        raise AttributeError(name)
    from nnunetv2_crossmatch import trainers

    return getattr(trainers, name)
