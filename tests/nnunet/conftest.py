"""What nnU-Net leaves of a training."""

from pathlib import Path

STAMP = "2026-01-01 00:00:00.000000: "


def write_log(folder: Path, name: str, *lines: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"training_log_{name}.txt").write_text(
        "\n\nnot stamped: Epoch 7\n" + "".join(f"{STAMP}{x} \n" for x in lines)
    )


def epoch(number: int, loss: float, seconds: float, *more: str) -> list[str]:
    dice = f"Pseudo dice [np.float32({loss}), np.float64(nan), {3 * loss}]"
    return [f"Epoch {number}", f"train_loss {loss}", f"val_loss -{loss}", dice, f"Epoch time: {seconds} s", *more]
