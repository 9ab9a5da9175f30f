"""Installed into nnU-Net's trainer folder (see pyproject.toml): every name nnU-Net asks for is passed on."""

from nnunetv2_crossmatch.trainers import __getattr__  # noqa: F401
