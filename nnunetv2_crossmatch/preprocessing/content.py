"""What is in the raw scans of a dataset, labeled, unlabeled and held out: hashes and a few figures of each."""

from contextlib import closing, redirect_stderr
from io import StringIO
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.preprocessing.listing import labeled_and_held_out, survey_unlabeled, why_unusable
from nnunetv2_crossmatch.preprocessing.manifest import MANIFEST, Manifest, is_current, source_stamp
from nnunetv2_crossmatch.preprocessing.scan import BadScan, describe, read_scan
from nnunetv2_crossmatch.utilities.errors import DatasetError
from nnunetv2_crossmatch.utilities.files import is_unicode, locked, write_json
from nnunetv2_crossmatch.utilities.workers import run_in_workers

LABELED = "imagesTr"
UNLABELED = "unlabeled"  # wherever they are; held-out parts are called as their folders, imagesTs, ...
FILE = "content.json"

Content = dict[str, dict[str, dict]]  # part -> case -> manifest entry


def read_content(preprocessed_folder: Path) -> Content:
    """What the last :func:`update_content` saw; empty before the first."""
    file = preprocessed_folder / FILE
    return load_json(str(file)) if file.exists() else {}


def update_content(dataset: Dataset, num_processes: int) -> tuple[Content, dict[str, list[str]]]:
    """Look at every raw scan that is new or changed; write ``content.json`` to the preprocessed folder.

    Unlabeled scans that were looked at while they were preprocessed are not read again.

    Returns:
        The content, and for each part what is wrong with its scans.

    Raises:
        DatasetError: see :func:`~nnunetv2_crossmatch.preprocessing.listing.survey_unlabeled`.
    """
    preprocessed_folder = dataset.preprocessed
    parts = labeled_and_held_out(dataset.require_raw(), dataset.json)
    seen = _seen(preprocessed_folder)
    unlabeled, unlisted = survey_unlabeled(
        dataset.require_raw(), dataset.json, lambda case: any(case in content.get(UNLABELED, ()) for content in seen)
    )
    if unlabeled:
        parts[UNLABELED] = unlabeled
    content, unseen, problems = _known(parts, seen)
    if unseen:
        with locked(preprocessed_folder / f".{FILE}.lock"):  # a second process waits and finds all done
            seen = _seen(preprocessed_folder)
            content, unseen, problems = _known(parts, seen)
            reader = _reader(dataset.json, next(iter(parts[LABELED].values()), None))
            jobs = {key: (files, reader, dataset.json) for key, files in unseen.items()}
            try:
                with closing(run_in_workers(_look_at, jobs, num_processes, "Looking at the scans")) as done:
                    for (part, case), future in done:
                        try:
                            content[part][case] = future.result()
                        except BadScan as e:
                            problems[part].append(str(e))
            finally:  # also what an interrupted run has seen
                _write(content, seen[0], preprocessed_folder)
    else:
        _write(content, seen[0], preprocessed_folder)
    return content, {**problems, UNLABELED: [*unlisted, *problems.get(UNLABELED, [])]}


def _write(content: Content, written: Content, preprocessed_folder: Path) -> None:
    content = {part: dict(sorted(cases.items())) for part, cases in content.items()}
    if content != written:
        write_json(content, preprocessed_folder / FILE)


def _known(
    parts: dict[str, dict[str, list[Path]]], seen: list[Content]
) -> tuple[Content, dict[tuple[str, str], list[Path]], dict[str, list[str]]]:
    """What was seen of the files as they are now, what was not, and which do not exist."""
    content: Content = {part: {} for part in parts}
    unseen = {}
    problems: dict[str, list[str]] = {part: [] for part in parts}
    for part, scans in parts.items():
        for case, files in scans.items():
            entries = (of_parts.get(part, {}).get(case) for of_parts in seen)
            entry = next((e for e in entries if e is not None and is_current(e, files)), None)
            if entry is not None:
                content[part][case] = entry
            elif missing := [f"{file} ({case}) {why}" for file in files if (why := why_unusable(file))]:
                problems[part] += [f"{it}. Supply or rename it, or remove the case." for it in missing]
            else:
                unseen[part, case] = files
    return content, unseen, problems


def _seen(preprocessed_folder: Path) -> list[Content]:
    """What ``content.json`` says, then what the manifests say."""
    manifests = [Manifest.read(file.parent) for file in sorted(preprocessed_folder.glob(f"*/{MANIFEST}"))]
    return [read_content(preprocessed_folder), *({UNLABELED: manifest.cases} for manifest in manifests)]


def _reader(dataset_json: dict, example: list[Path] | None) -> type[BaseReaderWriter]:
    """The reader that nnU-Net will plan with: the first that can read a labeled scan."""
    examples = map(str, filter(is_unicode, example or []))
    with redirect_stderr(StringIO()):  # it prints every failure
        for file in (*examples, None):  # None: by the ending alone, if that scan is broken
            try:
                return determine_reader_writer_from_dataset_json(dataset_json, file, verbose=False)
            except RuntimeError as e:
                reason = e
    raise DatasetError([str(reason)])


def _look_at(files: list[Path], reader: type[BaseReaderWriter], dataset_json: dict) -> dict:
    source = source_stamp(files)
    data, properties = read_scan(files, reader(), dataset_json)
    return {"source": source, **describe(data, properties["spacing"])}
