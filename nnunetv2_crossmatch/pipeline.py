"""From raw scans to an exported model: every step is a command, and the disk says which of them are done."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.preprocessing.content import LABELED
from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.listing import unlabeled_ids
from nnunetv2_crossmatch.preprocessing.manifest import Manifest, source_stamp
from nnunetv2_crossmatch.preprocessing.reconcile import known_cases
from nnunetv2_crossmatch.trainers.estimate import Cost
from nnunetv2_crossmatch.utilities.files import write_json

STOCK, OURS = "nnUNetTrainer", "nnUNetTrainerCrossMatchFromStock"


@dataclass(frozen=True)
class Step:
    """``command`` is what does it; ``training`` is what it trains, ``result`` what it leaves for the user."""

    what: str
    command: str
    done: bool
    training: RunFolder | None = None
    result: Path | None = None


@dataclass(frozen=True)
class Pipeline:
    """Check, plan, train stock nnU-Net, go on with CrossMatch, compare, predict, export.

    num_processes: of every command that takes ``-np``; None: its own default.
    """

    dataset: Dataset
    plans: str
    configuration: str
    folds: Sequence[int | str]
    device: str
    num_processes: int | None = None

    def steps(self) -> list[Step]:
        """As they stand now; their number stays the same."""
        steps = [*self._preparation(), *self._trainings(), *self._results()]
        check = f"nnUNetv2_crossmatch check -d {self.dataset.name}{self._workers('-np')}"
        # done anew each time: seconds, where nothing has changed
        return [Step("check all scans", check, all(step.done for step in steps)), *steps]

    @property
    def record(self) -> Path:
        """JSON: commands that were done whose results do not tell whether they are whole, and what trainings cost."""
        return self._runs(OURS)[0].model_folder.parent / f"run__{self.plans}__{self.configuration}.json"

    def costs(self, device_name: str) -> list[Cost]:
        """As noted by :meth:`note_costs`; none for another device."""
        known = self._noted()["costs"].get(device_name, [])
        return [Cost(**{**cost, "epoch_seconds": tuple(cost["epoch_seconds"])}) for cost in known]

    def note_costs(self, costs: list[Cost], device_name: str) -> None:
        content = self._noted()
        of_device = {device_name: [asdict(cost) for cost in costs]}
        write_json({**content, "costs": {**content["costs"], **of_device}}, self.record)

    def planned(self) -> Planned | None:
        """None before the labeled scans are planned and preprocessed."""
        if not self._preparation()[0].done:
            return None
        return Planned(self.dataset, self.dataset.plans(self.plans), self.configuration)

    def _noted(self) -> dict[str, Any]:
        return load_json(str(self.record)) if self.record.exists() else {"done": {}, "costs": {}}

    def _made_of(self) -> list:
        files = [run.checkpoint() for trainer in (STOCK, OURS) for run in self._runs(trainer)]
        return source_stamp([file for file in (*files, *self._test_images) if file.exists()])

    def _result(self, what: str, command: str, file: Path) -> Step:
        done = file.exists() and self._noted()["done"].get(command) == self._made_of()
        return Step(what, command, done, result=file)

    def _runs(self, trainer: str) -> list[RunFolder]:
        of_fold = self.dataset.name, trainer, self.plans, self.configuration
        return [RunFolder.of(*of_fold, fold) for fold in self.folds]

    @property
    def _test_images(self) -> list[Path]:
        folder = self.dataset.require_raw() / "imagesTs"
        return sorted(folder.glob(f"*{self.dataset.json['file_ending']}")) if folder.is_dir() else []

    def _workers(self, *options: str) -> str:
        return "".join(f" {option} {self.num_processes}" for option in options if self.num_processes is not None)

    @property
    def _on_device(self) -> str:
        return "" if self.device == "cuda" else f" -device {self.device}"  # nnU-Net's default

    def _preparation(self) -> list[Step]:
        name, c, p = self.dataset.name, self.configuration, self.plans
        number, raw, preprocessed = int(name[7:10]), self.dataset.require_raw(), self.dataset.preprocessed
        plan = f"nnUNetv2_plan_and_preprocess -d {number} -c {c}{self._workers('-np', '-npfp')}"
        ours = f"nnUNetv2_crossmatch preprocess -d {name} -c {c} -p {p}{self._workers('-np')}"
        labeled_done = unlabeled_done = False
        if (preprocessed / f"{p}.json").exists() or p != "nnUNetPlans":
            planned = Planned(self.dataset, self.dataset.plans(p), c)
            plan = f"nnUNetv2_preprocess -d {number} -plans_name {p} -c {c}{self._workers('-np')}"
            folder, masks = preprocessed / planned.configuration.data_identifier, preprocessed / "gt_segmentations"
            ending = self.dataset.json["file_ending"]
            # what nnU-Net writes last of a case, and of all
            labeled_done = all(
                (folder / f"{case}.pkl").exists() and (masks / f"{case}{ending}").exists()
                for case in known_cases(self.dataset)[LABELED]
            )
            manifest = Manifest.read(planned.unlabeled_folder)
            listed = unlabeled_ids(raw, self.dataset.json)
            current = (manifest.plans, manifest.complete) == (planned.stamp, True)
            unlabeled_done = current and manifest.cases.keys() == listed and all(map(manifest.is_whole, listed))
        return [
            Step("plan, and preprocess the labeled scans", plan, labeled_done),
            Step("preprocess the unlabeled scans", ours, labeled_done and unlabeled_done),
        ]

    def _trainings(self) -> list[Step]:
        return [
            Step(f"train {run}", f"{run.go_on_command()}{self._on_device}", run.is_done, run)
            for trainer in (STOCK, OURS)
            for run in self._runs(trainer)
        ]

    def _results(self) -> list[Step]:
        folds, of_folds = (separator.join(map(str, self.folds)) for separator in (" ", "_"))
        of_model = f"-d {self.dataset.name} -c {self.configuration} -p {self.plans}"
        ours = f"{of_model} -tr {OURS} -f {folds}"
        model, raw = self._runs(OURS)[0].model_folder, self.dataset.require_raw()
        steps = []
        test = "all" in self.folds
        if not test or (self._test_images and (raw / "labelsTs").is_dir()):
            page = model.parent / f"comparison__{OURS}__{self.plans}__{self.configuration}.html"
            command = f"nnUNetv2_crossmatch compare {of_model} -tr {STOCK} {OURS} -f {folds}{' --test' if test else ''}"
            command += f" -o {shlex.quote(str(page))}{self._workers('-np')}{f' -device {self.device}' if test else ''}"
            steps.append(self._result("compare both", command, page))
        if self._test_images:
            target = model / f"predicted_fold_{of_folds}"
            command = f"nnUNetv2_predict {ours} -i {shlex.quote(str(raw / 'imagesTs'))} -o {shlex.quote(str(target))}"
            command += f"{self._workers('-npp', '-nps')}{self._on_device}"
            steps.append(self._result("predict imagesTs", command, target))
        archive = model.parent / f"{model.name}__fold_{of_folds}.zip"
        command = f"nnUNetv2_crossmatch export {ours} -o {shlex.quote(str(archive))}"
        # it is written whole or not at all
        written = archive.stat().st_mtime_ns if archive.exists() else 0
        done = all(run.is_trained and run.checkpoint().stat().st_mtime_ns < written for run in self._runs(OURS))
        return [*steps, Step("export the model", command, done, result=archive)]

    def do(self, step: Step) -> None:
        """Run its command, with its output as it comes.

        Raises:
            RuntimeError: it failed, or another process is at it: the training of a run that was killed goes on.
            KeyboardInterrupt: by SIGINT or SIGTERM; the command is ended.
        """
        path = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))
        environment = {**os.environ, "PATH": path}
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with (
                self._claimed() as lock,
                subprocess.Popen(shlex.split(step.command), env=environment, pass_fds=lock) as process,
            ):
                try:
                    failed = process.wait()
                except KeyboardInterrupt:
                    process.send_signal(signal.SIGINT)  # a terminal's Ctrl-C has reached it, too
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(10)
                    process.kill()
                    raise
        finally:
            signal.signal(signal.SIGTERM, before)
        if failed:
            raise RuntimeError(
                f"failed, as it says above: {step.command}\nWhen that is mended, the same run goes on with this step."
            )
        if step.result is not None:
            content = self._noted()
            write_json({**content, "done": {**content["done"], step.command: self._made_of()}}, self.record)

    @contextmanager
    def _claimed(self) -> Iterator[tuple[int, ...]]:
        """A lock, for the command as well: one whose parent was killed goes on."""
        if os.name == "nt":
            yield ()
            return
        import fcntl  # Windows has none

        self.record.parent.mkdir(parents=True, exist_ok=True)
        with open(self.record.with_suffix(".lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError("another run is at it, or what a run that was killed has started.") from None
            yield (lock.fileno(),)
