"""Versions that a run records."""

from importlib.metadata import version


def versions() -> dict[str, str]:
    """Of the packages that decide a training's result."""
    return {name: version(name) for name in ("nnunetv2_crossmatch", "nnunetv2", "torch")}
