"""Semi-supervised medical image segmentation inside nnU-Net."""

from importlib.metadata import version

__version__ = version(__name__)
