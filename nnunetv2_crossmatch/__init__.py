"""Semi-supervised medical image segmentation inside nnU-Net.

``check``, ``preprocess``, ``compare`` and ``evaluate`` do what the commands of these names do and return what they
found; ``list_trainers()`` lists what ``nnUNetv2_train -tr`` may be given.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version(__name__)
__all__ = ["__version__", "check", "compare", "evaluate", "list_trainers", "preprocess"]


def __getattr__(name: str) -> Any:
    """Imports nnU-Net and torch only now, which takes seconds."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
