"""From raw scans to an exported model: every step is a command, and the disk says which of them are done."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.preprocessing.content import LABELED, read_content
from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.listing import labeled_scans, survey_unlabeled
from nnunetv2_crossmatch.preprocessing.manifest import Manifest, source_stamp
from nnunetv2_crossmatch.preprocessing.masks import mask_files
from nnunetv2_crossmatch.trainers.claims import claimed, lock, lock_file
from nnunetv2_crossmatch.trainers.estimate import Cost
from nnunetv2_crossmatch.utilities.devices import device_option
from nnunetv2_crossmatch.utilities.files import sha256_of, write_json

STOCK, OURS = "nnUNetTrainer", "nnUNetTrainerCrossMatchFromStock"
PLAN = "plan, and preprocess the labeled scans"
BUSY = "another run or a sweep is at it, or what one that was killed has started."


@dataclass(frozen=True)
class Step:
    """``command`` is what does it; ``training`` is what it trains, ``result`` what it leaves for the user.

    stale: an earlier one's folder or file, which is set aside before.
    """

    what: str
    command: str
    done: bool
    training: RunFolder | None = None
    result: Path | None = None
    stale: Path | None = None


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
        """As they stand now."""
        steps = [*self._preparation(), *self._trainings(), *self._results()]
        check = f"nnUNetv2_crossmatch check -d {self.dataset.name}{self._workers('-np')}"
        # done anew each time: seconds, where nothing has changed
        return [Step("check all scans", check, all(step.done for step in steps)), *steps]

    @property
    def record(self) -> Path:
        """JSON: commands that were done whose results do not tell whether they are whole, and what trainings cost."""
        return self._runs(OURS)[0].model_folder.parent / f"run__{self.plans}__{self.configuration}.json"

    def costs(self, device_name: str) -> list[Cost]:
        """As noted by :meth:`note_costs`; none for another device or machine, or other plans."""
        known = self._noted()["costs"].get(self._measured_on(device_name), [])
        return [Cost(**{**cost, "epoch_seconds": tuple(cost["epoch_seconds"])}) for cost in known]

    def note_costs(self, costs: list[Cost], device_name: str) -> None:
        content = self._noted()
        of_device = {self._measured_on(device_name): [asdict(cost) for cost in costs]}
        write_json({**content, "costs": {**content["costs"], **of_device}}, self.record)

    def _measured_on(self, device_name: str) -> str:
        plans = self.dataset.preprocessed / f"{self.plans}.json"
        return f"{device_name}, {socket.gethostname()}, {sha256_of(plans)[:16] if plans.exists() else 'not planned'}"

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

    def _labeled(self) -> dict[str, list[Path]]:
        """Files of each labeled case, its mask with them."""
        masks = mask_files(self.dataset.require_raw(), self.dataset.json, [LABELED])[LABELED]
        scans = labeled_scans(self.dataset.require_raw(), self.dataset.json)
        return {case: [*files, *([masks[case]] if case in masks else [])] for case, files in scans.items()}

    def _preprocessed_from(self) -> list:
        planned = Planned(self.dataset, self.dataset.plans(self.plans), self.configuration)
        files = [file for files in self._labeled().values() for file in files]
        return [planned.stamp, *source_stamp([file for file in files if file.exists()])]

    def _trained_from(self) -> dict[str, Any]:
        """Voxels as ``check`` saw them last, not the files' times, which a copy changes: a training is dear."""
        planned = Planned(self.dataset, self.dataset.plans(self.plans), self.configuration)
        seen = read_content(self.dataset.preprocessed).get(LABELED, {})
        entries = {case: seen.get(case, {}) for case in self._labeled()}
        scans = {
            case: [entry.get("sha256"), entry.get("spacing"), entry.get("mask", {}).get("sha256")]
            for case, entry in entries.items()
        }
        return {"labeled scans": scans, "plans": planned.stamp}

    def _result(self, what: str, command: str, file: Path) -> Step:
        done = file.exists() and self._noted()["done"].get(file.name) == self._made_of()
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
                (folder / f"{case}.pkl").exists() and (masks / f"{case}{ending}").exists() for case in self._labeled()
            )
            # nothing is noted of what somebody preprocessed without this command
            noted = self._noted()["done"].get(LABELED)
            labeled_done = labeled_done and noted in (None, self._preprocessed_from())
            manifest = Manifest.read(planned.unlabeled_folder)
            listed, problems = survey_unlabeled(raw, self.dataset.json, manifest.cases.__contains__)
            listed = listed or {}
            current = (manifest.plans, manifest.complete) == (planned.stamp, True) and not problems
            unlabeled_done = current and manifest.cases.keys() == listed.keys()
            unlabeled_done = unlabeled_done and all(manifest.is_current(*case) for case in listed.items())
        return [
            Step(PLAN, plan, labeled_done),
            Step("preprocess the unlabeled scans", ours, labeled_done and unlabeled_done),
        ]

    def _trainings(self) -> list[Step]:
        stocks, ours = self._runs(STOCK), self._runs(OURS)
        for run in (*stocks, *ours):
            latest = run.checkpoint("checkpoint_latest.pth")
            if run.is_trained and latest.exists() and _time(latest) > _time(run.checkpoint()):
                raise RuntimeError(
                    f"{run} was trained again, but not to the end, and nnU-Net would take the earlier training's "
                    f"{run.checkpoint()}. Move that file away to go on with the new training."
                )
        planned = (self.dataset.preprocessed / f"{self.plans}.json").exists()
        now = self._trained_from() if planned else None
        steps = []
        for run in (*stocks, *ours):
            before = self._was_trained_from(run) if run.path.exists() else None
            if now and before and before != now:
                changed = " and the ".join(what for what in now if before[what] != now[what])
                steps.append(self._train_again(run, f"the {changed} have changed"))
            else:
                steps.append(Step(f"train {run}", run.go_on_command(self.device), run.is_done, run))
        for number, (stock, run) in enumerate(zip(stocks, ours, strict=True), len(stocks)):
            if stock.is_trained and run.checkpoints and max(map(_time, run.checkpoints)) < _time(stock.checkpoint()):
                steps[number] = self._train_again(run, f"{STOCK} was trained after it")
        return steps

    def _train_again(self, run: RunFolder, why: str) -> Step:
        what = f"train {run} again, as {why}; what is there is kept as {_set_aside(run.path).name}"
        return Step(what, run.train_command(device=self.device), False, run, stale=run.path)

    def _was_trained_from(self, run: RunFolder) -> dict[str, Any] | None:
        """See :meth:`_trained_from`; None of a training that somebody else has begun or repeated."""
        noted, final = self._noted()["done"].get(str(run), {}), run.checkpoint()
        return noted.get("from") if noted.get("checkpoint") == (_time(final) if run.is_trained else None) else None

    def _results(self) -> list[Step]:
        folds, of_folds = (separator.join(map(str, self.folds)) for separator in (" ", "_"))
        of_model = f"-d {self.dataset.name} -c {self.configuration} -p {self.plans}"
        ours = f"{of_model} -tr {OURS} -f {folds}"
        model, raw = self._runs(OURS)[0].model_folder, self.dataset.require_raw()
        steps = []
        test = "all" in self.folds
        if not test or (self._test_images and (raw / "labelsTs").is_dir()):
            which = f"{of_folds}{'__test' if test else ''}"
            page = model.parent / f"comparison__{OURS}__{self.plans}__{self.configuration}__folds_{which}.html"
            command = f"nnUNetv2_crossmatch compare {of_model} -tr {STOCK} {OURS} -f {folds}{' --test' if test else ''}"
            command += f" -o {shlex.quote(str(page))}{self._workers('-np')}{f' -device {self.device}' if test else ''}"
            steps.append(self._result("compare both", command, page))
        if self._test_images:
            target = model / f"predicted_fold_{of_folds}"
            command = f"nnUNetv2_predict {ours} -i {shlex.quote(str(raw / 'imagesTs'))} -o {shlex.quote(str(target))}"
            command += f"{self._workers('-npp', '-nps')}{device_option(self.device)}"
            steps.append(self._result("predict imagesTs", command, target))
        archive = model.parent / f"{model.name}__fold_{of_folds}.zip"
        command = f"nnUNetv2_crossmatch export {ours} -o {shlex.quote(str(archive))}"
        # it is written whole or not at all
        stale = archive if archive.exists() else None
        done = all(stale and run.is_trained and _time(run.checkpoint()) < _time(stale) for run in self._runs(OURS))
        return [*steps, Step("export the model", command, done, result=archive, stale=stale)]

    def do(self, step: Step) -> None:
        """Run its command, with its output as it comes.

        Raises:
            RuntimeError: it failed, or another process is at it: the training of a run that was killed goes on.
            KeyboardInterrupt: by SIGINT or SIGTERM; the command is ended.
        """
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        environment = {**os.environ, "PATH": path}
        if step.stale is not None:
            with self.claimed(), claimed(step.training) if step.training else nullcontext():
                step.stale.rename(_set_aside(step.stale))
        run = step.training
        if run is not None and not run.checkpoints:  # --c goes on with what was read then
            self._note(str(run), {"from": self._trained_from(), "checkpoint": None})
        seen = self._was_trained_from(run) if run is not None and not run.is_trained else None
        endings = [signal.SIGTERM, *([] if os.name == "nt" else [signal.SIGHUP])]
        endings = [number for number in endings if signal.getsignal(number) != signal.SIG_IGN]  # nohup
        before = [signal.signal(number, signal.default_int_handler) for number in endings]
        try:
            failed = self._call(step, environment)
        finally:
            for number, handler in zip(endings, before, strict=True):
                signal.signal(number, handler)
            if run is not None and run.is_trained and seen:
                self._note(str(run), {"from": seen, "checkpoint": _time(run.checkpoint())})
        if failed:
            raise RuntimeError(
                f"failed, as it says above: {step.command}\nWhen that is mended, the same run goes on with this step."
            )
        if step.what == PLAN:
            self._note(LABELED, self._preprocessed_from())
        if step.result is not None:
            self._note(step.result.name, self._made_of())

    def _call(self, step: Step, environment: dict[str, str]) -> int:
        """Exit status. The command holds the locks, and with it all that it starts ends."""
        command = shlex.split(step.command)
        if os.name == "nt":
            return subprocess.run(command, env=environment, check=False).returncode
        with ExitStack() as stack:
            files = [self._lock_file, *([lock_file(step.training)] if step.training else [])]
            for file in files:
                file.parent.mkdir(parents=True, exist_ok=True)
            descriptors = [stack.enter_context(open(file, "w")).fileno() for file in files]

            def claim() -> None:
                for descriptor in descriptors:
                    lock(descriptor)

            try:
                process = subprocess.Popen(
                    command, env=environment, pass_fds=descriptors, preexec_fn=claim, start_new_session=True
                )
            except subprocess.SubprocessError:
                raise RuntimeError(BUSY) from None
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # loaders outlive a training that was killed
            process.wait()

    def _note(self, what: str, made_of: list | dict) -> None:
        content = self._noted()
        write_json({**content, "done": {**content["done"], what: made_of}}, self.record)

    @property
    def _lock_file(self) -> Path:
        return self.record.with_suffix(".lock")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the lock in this process.

        Raises:
            RuntimeError: another run has it, or what that has started.
        """
        self._lock_file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._lock_file, "w") as stream:
            if os.name != "nt":
                try:
                    lock(stream.fileno())
                except (BlockingIOError, PermissionError):
                    raise RuntimeError(BUSY) from None
            yield


def _set_aside(path: Path) -> Path:
    """Where it is kept when another one takes its place."""
    names = (path.with_name(f"earlier_{number}_{path.name}") for number in count(1))
    return next(name for name in names if not name.exists())


def _time(file: Path) -> int:
    return file.stat().st_mtime_ns
