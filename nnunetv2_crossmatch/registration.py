"""Installed into nnU-Net's trainer folder (see pyproject.toml): every name nnU-Net asks for is passed on."""

try:
    from nnunetv2_crossmatch.trainers import __getattr__  # noqa: F401
except ModuleNotFoundError as e:  # e.g. an editable install whose folder is gone: stock trainers must still be found
    if e.name is None or not e.name.startswith("nnunetv2_crossmatch"):
        raise
