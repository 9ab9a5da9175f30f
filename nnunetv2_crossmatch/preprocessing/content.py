"""What is in the raw scans of a dataset, labeled, unlabeled and held out: hashes and a few figures of each."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

from nnunetv2_crossmatch.nnunet.images import find_reader, has_no_geometry
from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.preprocessing.image_folder import left_out_of
from nnunetv2_crossmatch.preprocessing.listing import labeled_and_held_out, survey_unlabeled, why_unusable
from nnunetv2_crossmatch.preprocessing.manifest import MANIFEST, Manifest, is_current, source_stamp
from nnunetv2_crossmatch.preprocessing.masks import describe_mask, mask_files
from nnunetv2_crossmatch.preprocessing.scan import BadScan, WrongChannels, describe, read_scan
from nnunetv2_crossmatch.utilities.dataset_json import channel_names
from nnunetv2_crossmatch.utilities.errors import DatasetError, some
from nnunetv2_crossmatch.utilities.files import locked, write_json
from nnunetv2_crossmatch.utilities.versions import versions
from nnunetv2_crossmatch.utilities.workers import run_in_workers

LABELED = "imagesTr"
UNLABELED = "unlabeled"  # wherever they are; held-out parts are called as their folders, imagesTs, ...
FILE = "content.json"

MADE_WITH = "made_with"  # beside the parts in the file: what all figures depend on
_FORMAT = 2  # of the figures; those of another one are made again

Content = dict[str, dict[str, dict]]  # part -> case -> manifest entry; with "mask" where the scan has one
Unseen = dict[tuple[str, str], tuple[list[Path], Path | None]]  # (part, case) -> files of the scan, mask


def read_content(preprocessed_folder: Path) -> Content:
    """What the last :func:`update_content` saw; empty before the first."""
    return _read(preprocessed_folder)[0]


def update_content(dataset: Dataset, num_processes: int) -> tuple[Content, dict[str, list[str]]]:
    """Look at every raw scan and mask that is new or changed; write ``content.json`` to the preprocessed folder.

    Unlabeled scans that were looked at while they were preprocessed are not read again. With another reader or
    file ending than those of the last time all scans are.

    Returns:
        The content, and for each part what is wrong with its scans.

    Raises:
        DatasetError: see :func:`~nnunetv2_crossmatch.preprocessing.listing.survey_unlabeled`; no labeled scan.
    """
    raw_folder, preprocessed_folder = dataset.require_raw(), dataset.preprocessed
    parts = labeled_and_held_out(raw_folder, dataset.json)
    if not parts[LABELED] and "dataset" not in dataset.json:
        raise DatasetError(
            [
                f"{raw_folder / LABELED} has no scan that ends in {dataset.json['file_ending']}, the file_ending of "
                "dataset.json. Correct it, or supply the labeled scans.",
                *left_out_of(raw_folder / LABELED, dataset.json),
            ]
        )
    masks = mask_files(raw_folder, dataset.json, parts)
    reader = _reader(dataset.json, next(iter(parts[LABELED].values()), []), preprocessed_folder)
    made_with = {**_settings(dataset.json), "reader": reader.__name__, "versions": versions()}
    seen = _seen(preprocessed_folder, made_with)
    unlabeled, unlisted = survey_unlabeled(
        raw_folder, dataset.json, lambda case: any(case in content.get(UNLABELED, ()) for content in seen)
    )
    if unlabeled:
        parts[UNLABELED] = unlabeled
    content, unseen, problems = _known(parts, masks, seen)
    channels: dict[tuple[str, str], WrongChannels] = {}
    if unseen:
        with locked(preprocessed_folder / f".{FILE}.lock"):  # a second process waits and finds all done
            seen = _seen(preprocessed_folder, made_with)
            content, unseen, problems = _known(parts, masks, seen)
            jobs = {key: (*files, reader, dataset.json) for key, files in unseen.items()}
            try:
                with closing(run_in_workers(_look_at, jobs, num_processes, "Looking at the scans")) as done:
                    for (part, case), future in done:
                        try:
                            content[part][case] = future.result()
                        except WrongChannels as e:
                            channels[part, case] = e
                        except BadScan as e:
                            problems[part].append(str(e))
            finally:  # also what an interrupted run has seen
                _write(content, seen[0], made_with, preprocessed_folder)
    else:
        _write(content, seen[0], made_with, preprocessed_folder)
    for part, of_part in wrong_channels(content, channels, dataset.json).items():
        problems[part] += of_part
    return content, {**problems, UNLABELED: [*unlisted, *problems.get(UNLABELED, [])]}


def look_at_masked(
    dataset: Dataset, scans: Mapping[str, tuple[list[Path], Path]], num_processes: int
) -> tuple[dict[str, dict], list[str]]:
    """Entries as in the content, of scans with masks from elsewhere; nothing is written.

    Args:
        scans: {case: (files of the scan, mask)}.

    Returns:
        {case: entry}, and what is wrong with the others.
    """
    reader = _reader(dataset.json, next(iter(scans.values()), ([],))[0], dataset.preprocessed)
    jobs = {case: (files, mask, reader, dataset.json) for case, (files, mask) in scans.items()}
    entries, problems = {}, []
    with closing(run_in_workers(_look_at, jobs, num_processes, "Looking at the masks")) as done:
        for case, future in done:
            try:
                entries[case] = future.result()
            except BadScan as e:
                problems.append(str(e))
    return dict(sorted(entries.items())), sorted(problems)


def wrong_channels(
    content: Content, refused: dict[tuple[str, str], WrongChannels], dataset_json: dict
) -> dict[str, list[str]]:
    """A line for each other number of channels than dataset.json names, for the first part that has such scans.

    They are taken out of the content.

    Args:
        refused: (part, case) of scans that are not in the content for this reason.
    """
    names = channel_names(dataset_json)
    numbers = {scan: e.channels for scan, e in refused.items()}
    for part, cases in content.items():
        for case, entry in list(cases.items()):
            if len(entry["intensities"]) != len(names):
                numbers[part, case] = len(cases.pop(case)["intensities"])
    lines: dict[str, list[str]] = {}
    for number in sorted(set(numbers.values())):
        scans = sorted(scan for scan, its in numbers.items() if its == number)
        part = min((part for part, _ in scans), key=lambda part: (part not in (LABELED, UNLABELED), part))
        if len(scans) == 1 and scans[0] in refused:
            line = str(refused[scans[0]])
        else:
            line = (
                f"{len(scans)} scans have another number of channels, {number}, than dataset.json names, {len(names)} "
                f"({', '.join(names)}): {some([f'{part}/{case}' for part, case in scans])}. Supply the same ones or "
                "correct channel_names."
            )
        lines.setdefault(part, []).append(line)
    return lines


def _read(preprocessed_folder: Path) -> tuple[Content, dict]:
    """The parts, and what they were made with."""
    file = preprocessed_folder / FILE
    content = load_json(str(file)) if file.exists() else {}
    return content, content.pop(MADE_WITH, {})


def _write(content: Content, written: Content, made_with: dict, preprocessed_folder: Path) -> None:
    content = {part: dict(sorted(cases.items())) for part, cases in content.items()}
    if content != written:
        write_json({MADE_WITH: made_with, **content}, preprocessed_folder / FILE)


def _known(
    parts: dict[str, dict[str, list[Path]]], masks: dict[str, dict[str, Path]], seen: list[Content]
) -> tuple[Content, Unseen, dict[str, list[str]]]:
    """What was seen of the files as they are now, what was not, and which do not exist."""
    content: Content = {part: {} for part in parts}
    unseen: Unseen = {}
    problems: dict[str, list[str]] = {part: [] for part in parts}
    for part, scans in parts.items():
        of_part = masks.get(part, {})
        for case, files in scans.items():
            mask = of_part.get(case)
            both = files if mask is None else [*files, mask]
            entries = (of_parts.get(part, {}).get(case) for of_parts in seen)
            entry = next((e for e in entries if e is not None and is_current(e, both)), None)
            if entry is not None:
                content[part][case] = entry
            elif missing := [f"{file} ({case}) {why}" for file in both if (why := why_unusable(file))]:
                problems[part] += [f"{it}. Supply or rename it, or remove the case." for it in missing]
            else:
                unseen[part, case] = files, mask
    if unmasked := sorted(parts[LABELED].keys() - masks[LABELED].keys()):
        problems[LABELED].append(
            f"{len(unmasked)} of {len(parts[LABELED])} labeled scans have no mask in labelsTr: {some(unmasked)}. "
            "Supply it, or move the scan to imagesUn."
        )
    return content, unseen, problems


def _seen(preprocessed_folder: Path, made_with: dict) -> list[Content]:
    """What ``content.json`` says, then what the manifests say; nothing of what another reader saw."""
    content, before = _read(preprocessed_folder)
    compared = made_with.keys() - {"versions"}
    manifests = [Manifest.read(file.parent) for file in sorted(preprocessed_folder.glob(f"*/{MANIFEST}"))]
    return [
        content if all(before.get(key) == made_with[key] for key in compared) else {},
        *({UNLABELED: manifest.cases} for manifest in manifests if manifest.reader == made_with["reader"]),
    ]


def _settings(dataset_json: dict) -> dict:
    """From which the reader follows."""
    return {
        "format": _FORMAT,
        "file_ending": dataset_json["file_ending"],
        "overwrite_image_reader_writer": dataset_json.get("overwrite_image_reader_writer"),
    }


def _reader(dataset_json: dict, example: list[Path], preprocessed_folder: Path) -> type[BaseReaderWriter]:
    """The reader that nnU-Net will plan with: the first that can read a labeled scan."""
    before = _read(preprocessed_folder)[1]
    if before and {**before, **_settings(dataset_json)} == before:
        return recursive_find_reader_writer_by_name(before["reader"])
    try:
        return find_reader(dataset_json, example)
    except RuntimeError as e:
        raise DatasetError([str(e)]) from None


def _look_at(files: list[Path], mask: Path | None, reader: type[BaseReaderWriter], dataset_json: dict) -> dict:
    source = source_stamp(files if mask is None else [*files, mask])
    data, properties = read_scan(files, reader(), dataset_json)
    entry = {"source": source, **describe(data, properties["spacing"]), "bare": has_no_geometry(properties)}
    shape = list(data.shape[1:])
    del data  # a CT is half a gigabyte
    return entry if mask is None else {**entry, "mask": describe_mask(mask, shape, properties, reader())}
