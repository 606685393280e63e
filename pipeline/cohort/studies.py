"""Find the FLAIR series of each DICOM study in a folder or zip. Studies that are not clear are refused."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.cohort.names import folder_name, shortened
from pipeline.errors import PipelineError
from pipeline.imaging.dicom import Series, choose_flair, find_series, is_dicom

_SUFFIXES = (".dcm", ".dicom", ".ima")
Parts = tuple[str, ...]


@dataclass(frozen=True)
class Studies:
    """The DICOM studies in a folder or zip. All files are paths inside it.

    Args:
        flair: Files of the FLAIR series, by name of the study.
        skipped: Why a file is not used, by file.
        refused: Why a study has no usable series, by name of the study.
        uids: SeriesInstanceUIDs of all series.
    """

    flair: dict[str, tuple[str, ...]]
    skipped: dict[str, str]
    refused: dict[str, str]
    uids: frozenset[str]


def find_studies(place: Path, files: Mapping[str, Path], wanted: str | None = None) -> Studies:
    """The FLAIR series of each DICOM study in a folder or zip.

    A single study is named after the folder or zip. Several studies are named after the folders that distinguish them,
    never after a header. A study is refused if its FLAIR is not clear. It is also refused if copies or damaged files
    lie beside its FLAIR, because a damaged file with a DICOM name may be a slice.

    Args:
        place: The folder or zip.
        files: Each file on the disk, by its path in ``place``.
        wanted: A SeriesNumber to use as FLAIR, or the SeriesInstanceUID of one study; None to find FLAIR by headers.

    Raises:
        PipelineError: There is no DICOM image, or a SeriesNumber is given for several studies.
    """
    names = {file: name for name, file in files.items()}
    begun = {file for file in names if is_dicom(file)}
    found = find_series([file for file, name in names.items() if file in begun or _may_be_dicom(name)])
    if not found.series:
        raise PipelineError(
            f"{place}: no DICOM image in it ({len(names)} other files, {len(found.damaged)} of them damaged). "
            "Check the path."
        )
    studies: dict[str, list[Series]] = {}
    for one in found.series:
        studies.setdefault(one.study, []).append(one)
    several = len(studies) > 1
    if wanted and several and not is_uid(wanted):
        raise PipelineError(
            f"{place}: {len(studies)} studies (expected one with --series NUMBER). Give one folder, or a series' UID."
        )
    damaged = {names[file]: reason for file, reason in found.damaged.items()}
    surely = {name for name in damaged if files[name] in begun or _is_named_dicom(name)}
    skipped = {name: "not DICOM" for file, name in names.items() if file not in begun}
    skipped |= {name: f"damaged, {damaged[name]}" for name in surely}
    skipped |= {names[file]: reason for file, reason in found.others.items()}
    paths = {uid: [names[file] for one in study for file in one.files] for uid, study in studies.items()}
    refused = _lost(surely, [*itertools.chain(*paths.values())])
    folders = _study_folders(paths)
    alike = Counter(found.name for found in folders.values())
    flair: dict[str, tuple[str, ...]] = {}
    for uid, study in studies.items():
        name = (folders[uid].name if several else "") or (place.stem if place.is_file() else folder_name(place))
        number = max(folders[uid].studies, alike[folders[uid].name])
        if number > 1:
            refused[name] = (
                f"{number} studies without a folder each (expected one study per folder). Sort them into folders. The "
                "results are named after the folders, joined by '_'."
            )
            continue
        try:
            chosen = choose_flair(study, _wanted_of(study, wanted), by_uid=several)
            own = tuple(names[file] for file in chosen.files)
            _refuse_damaged(own, damaged)
            _refuse_copies(own, chosen)
        except PipelineError as error:
            refused[name] = str(error)
            continue
        flair[name] = own
        for one in study:
            if one is not chosen:
                skipped |= {names[file]: f"series {one}, not FLAIR" for file in one.files}
    return Studies(flair, skipped, refused, frozenset(one.uid for one in found.series))


def is_uid(series: str) -> bool:
    """Whether the value of ``--series`` is a SeriesInstanceUID. A SeriesNumber has no dot."""
    return "." in series


def _wanted_of(study: Sequence[Series], wanted: str | None) -> str | None:
    """The series that ``--series`` names in this study; None if it is the UID of a series in another study."""
    if wanted and is_uid(wanted) and wanted not in {one.uid for one in study}:
        return None
    return wanted


class _Folders(NamedTuple):
    """The folders that name a study.

    Args:
        name: Names of the folders, joined by ``_``.
        studies: Number of studies in these folders.
    """

    name: str
    studies: int


def _study_folders(files: Mapping[str, Iterable[str]]) -> dict[str, _Folders]:
    """The folders that distinguish each study from the others, by study."""
    parents = {study: {PurePosixPath(path).parent.parts for path in paths} for study, paths in files.items()}
    start = len(_shared({parts for own in parents.values() for parts in own}))
    studies: dict[Parts, set[str]] = defaultdict(set)
    for study, own in parents.items():
        for parts in own:
            for end in range(len(parts) + 1):
                studies[parts[:end]].add(study)
    found = {}
    for study, own in parents.items():
        shared = _shared(own)
        end = next((end for end in range(len(shared)) if len(studies[shared[:end]]) == 1), len(shared))
        found[study] = _Folders("_".join(shared[start:end]), len(studies[shared[:end]]))
    return found


def _shared(folders: Collection[Parts]) -> Parts:
    """The folders with which all paths begin."""
    levels = zip(*folders, strict=False)
    return tuple(parts[0] for parts in itertools.takewhile(lambda parts: len({*parts}) == 1, levels))


def _lost(damaged: Collection[str], readable: Sequence[str]) -> dict[str, str]:
    """Messages about folders in which all DICOM files are damaged, by folder. Each folder may be a patient."""
    start = len(_shared({PurePosixPath(name).parts[:-1] for name in (*damaged, *readable)}))
    tops = {PurePosixPath(name).parts[start] for name in readable}
    lost: dict[str, list[str]] = defaultdict(list)
    for name in sorted(damaged):
        top, *below = PurePosixPath(name).parts[start:]
        if below and top not in tops:
            lost[top].append(name)
    return {
        top: f"{len(names)} damaged DICOM file(s) and no other: {shortened(names)}. Export the series again."
        for top, names in lost.items()
    }


def _refuse_damaged(series: Sequence[str], damaged: Mapping[str, str]) -> None:
    """Refuse a series if a damaged file, which may be a slice of it, lies in the same folder."""
    folders = {PurePosixPath(name).parent for name in series}
    beside = [f"{name} ({why})" for name, why in damaged.items() if PurePosixPath(name).parent in folders]
    if beside:
        raise PipelineError(
            f"{len(beside)} damaged file(s) beside the series: {shortened(beside)}. Export the series again, or remove "
            "the files that are not slices."
        )


def _refuse_copies(names: Sequence[str], series: Series) -> None:
    """Refuse a series that holds an image twice."""
    images: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, header in zip(names, series.headers, strict=True):
        images[str(header.get("SOPInstanceUID") or name), str(header.get("ImagePositionPatient"))].append(name)
    twice = [group for group in images.values() if len(group) > 1]
    if twice:
        raise PipelineError(
            f"{len(twice)} image(s) exist twice: for example {' and '.join(twice[0][:2])}. Remove one copy."
        )


def _is_named_dicom(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in _SUFFIXES


def _may_be_dicom(name: str) -> bool:
    """Whether DICOM files may have this name: it ends in a DICOM suffix, in no suffix or in a number as UIDs do."""
    suffix = PurePosixPath(name).suffix
    return _is_named_dicom(name) or not suffix or suffix[1:].isdigit()
