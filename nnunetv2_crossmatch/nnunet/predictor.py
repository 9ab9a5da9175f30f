"""nnU-Net's predictor."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor


def load_predictor(
    model_folder: Path, folds: Sequence[int | str], checkpoint: str, device: torch.device, use_mirroring: bool = True
) -> nnUNetPredictor:
    """With the models of these folds; without nnU-Net's line about CUDA, which it prints wherever there is none."""
    with redirect_stdout(StringIO()):
        predictor = nnUNetPredictor(device=device, use_mirroring=use_mirroring, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model_folder), tuple(folds), checkpoint)
    return predictor
