"""What is given to be predicted -> one image volume a patient: files, folders, DICOM, slices, manifests."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.cohort.cases import HEADER_SUFFIXES, data_file
from pipeline.cohort.listing import LINK, Listing, list_files
from pipeline.cohort.manifest import read_images
from pipeline.cohort.names import JUNK_NAMES, id_fault, is_junk_folder, shortened
from pipeline.cohort.sequences import Sequences, group
from pipeline.cohort.studies import find_studies, is_uid
from pipeline.errors import ManifestError, PipelineError
from pipeline.files import FINISHED
from pipeline.imaging.dicom import convert, is_dicom, series_of, unpacked
from pipeline.imaging.formats import NIFTI_SUFFIXES, case_of, is_volume_name, stem_of
from pipeline.scripts.faults import shown
from pipeline.scripts.manifest import IMAGE_SUFFIX, MANIFEST_NAME, VOLUMES, refuse_described
from pipeline.scripts.sequences import is_t1_flair, sequence_of
from pipeline.scripts.volumes import open_nifti

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

BUILT_MARK = ".built_volumes"
"""Stands beside ``volumes/`` from before the first volume is built: what lies in it is no input."""


@dataclass(frozen=True)
class Source:
    """Where a patient's image comes from.

    Args:
        image: The NIfTI volume that the networks read; built first where one of the others is given.
        sequences: FLAIR and T1 in files of their own, or FLAIR in a format other than NIfTI.
        dicom: A folder or zip that holds a DICOM series.
        series: The files of the FLAIR series, by their paths in ``dicom``.
    """

    image: Path
    sequences: Sequences | None = None
    dicom: Path | None = None
    series: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All paths that an error may name."""
        parts = (self.sequences.flair, self.sequences.pre, self.sequences.post) if self.sequences else ()
        return tuple(path for path in (*parts, self.dicom, self.image) if path)

    @property
    def is_built(self) -> bool:
        """Whether the NIfTI volume is made of something else."""
        return self.sequences is not None or self.dicom is not None


@dataclass(frozen=True)
class Inputs:
    """The patients that were found.

    Args:
        sources: Patient -> where the image comes from.
        slice_folders: Folders of slices, which are still to be built.
        skipped: File -> why it is not used.
        refused: Patient -> why it cannot be told which file or series is which. Up to the first colon the message tells
            nothing that a header or a file's name holds.
    """

    sources: Mapping[str, Source]
    slice_folders: tuple[Path, ...] = ()
    skipped: Mapping[Path, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def find_inputs(paths: Sequence[Path], out: Path, series: str | None = None) -> Inputs:
    """The volumes that paths stand for.

    Args:
        paths: Volume files, zips of DICOM, folders of volumes, DICOM or slices, manifests or their folders, other
            Decathlon datalists.
        out: The folder of the results, in which volumes are built.
        series: A SeriesNumber or SeriesInstanceUID to take for FLAIR.

    Raises:
        PipelineError: Nothing is found, two volumes have one name, or it cannot be told which file holds what, of no
            patient.
    """
    contents = [_content_of(path, out, series) for path in paths]
    found = [one for content in contents for one in content.found]
    refused = [(name, *told) for content in contents for name, told in content.refused.items()]
    uids = set().union(*(content.uids for content in contents))
    if series and is_uid(series) and uids and series not in uids:
        raise PipelineError(f"--series {series}: no series of this UID (found {len(uids)} others). Check the UID.")
    _refuse_names(
        [*((name, _origin(source)) for name, source in found), *((name, place) for name, place, _ in refused)]
    )
    if not found and refused:
        raise ManifestError({name: [message] for name, _, message in refused})
    if not found:
        raise PipelineError(f"{', '.join(map(str, paths))}: no volume in it (expected one or more). Check the path.")
    return Inputs(
        dict(found),
        tuple(path for path, content in zip(paths, contents, strict=True) if content.is_of_slices),
        {path: reason for content in contents for path, reason in content.skipped.items()},
        {name: message for name, _, message in refused},
    )


def _content_of(path: Path, out: Path, series: str | None) -> _Content:
    if (path.suffix.lower() == ".json" and not path.is_dir()) or (path / MANIFEST_NAME).is_file():
        return _Content([(name, _source(name, Sequences(image), out)) for name, image in read_images(path)])
    if path.is_dir():
        return _of_folder(path, out, series)
    if path.is_file() and path.name.lower().endswith(".zip"):
        return _of_zip(path, out, series)
    if is_volume_name(path.name):
        told = sequence_of(stem_of(path.name))
        if is_t1_flair(stem_of(path.name)) or (told and told[1] != "flair"):
            raise PipelineError(f"{path}: by its name a T1 (expected FLAIR). Give FLAIR, or rename the file.")
        return _Content([(_name_of(path), _source(_name_of(path), Sequences(path), out))])
    raise PipelineError(
        f"{path}: {'no volume' if path.exists() else 'nothing there'} (expected NIfTI, MHA or NRRD, a zip of DICOM, a "
        "folder of volumes, DICOM or slices, or a manifest or other Decathlon datalist). Check the path."
    )


def name_sequences(given: Sequence[Path], pre: Path | None, post: Path | None, out: Path) -> Inputs:
    """FLAIR, pre- and post-contrast T1 as they are named, of one patient."""
    if len(given) != 1 or not is_volume_name(given[0].name):
        raise PipelineError("T1 of its own goes with one FLAIR file (expected one). Give --flair FILE.")
    flair = given[0]
    name = stem_of(flair.name)
    found = [(name, _source(name, Sequences(flair, pre, post), out))]
    for path in filter(None, (flair, pre, post)):
        if not path.is_file():
            raise PipelineError(f"{path}: no such file. Check the path.")
    _refuse_names([(name, flair)])
    return Inputs(dict(found))


def build_volume(source: Source) -> list[str]:
    """Build the NIfTI volume of a source that has none yet; a line for each sequence that FLAIR stands in for.

    Raises:
        PipelineError: A file cannot be read, or the series does not make one volume.
    """
    from pipeline.imaging.formats import join_sequences
    from pipeline.imaging.nifti import save_image

    if source.sequences:
        image, remarks = join_sequences(source.sequences.flair, source.sequences.pre, source.sequences.post)
        save_image(image, source.image)
        return source.sequences.missing + remarks
    if source.dicom:
        import tempfile

        from pipeline.imaging.formats import read_volume

        with series_of(source.dicom, source.series) as series, tempfile.TemporaryDirectory() as folder:
            save_image(read_volume(convert(series, Path(folder))), source.image)
    return []


def build_one(path: Path, folder: Path) -> Path:
    """The NIfTI volume of the one patient that a path stands for, built in ``folder`` where it is not there yet.

    Raises:
        PipelineError: The path stands for no patient, or for several.
    """
    from pipeline.cohort.reading import build_images

    found = find_inputs([path], folder)
    patients = len(found.sources) + len(found.refused)
    if patients != 1:
        raise PipelineError(f"{path}: {patients} patients (expected one). Use predict_volumes for several.")
    (source,) = found.sources.values()
    for slices in found.slice_folders:
        build_images(slices, source.image.parent)
    for remark in build_volume(source):
        logger.warning("%s: %s", shown(path), remark)
    return source.image


def write_segmentation_of(source: Source, mask: NDArray[Any], path: Path) -> None:
    """Write a mask, on the grid of ``source.image``, as DICOM SEG of the series that the image was made of."""
    from pipeline.imaging.dicom_seg import write_segmentation

    if source.dicom is None:
        raise PipelineError(f"{source.image}: not made of DICOM (expected a DICOM series). Leave --dicom-seg out.")
    with series_of(source.dicom, source.series) as series:
        write_segmentation(path, mask, open_nifti(source.image).affine, series)


def _source(name: str, sequences: Sequences, out: Path) -> Source:
    """A NIfTI file that stands alone is read as it is."""
    alone = not sequences.pre and not sequences.post and sequences.flair.name.lower().endswith(NIFTI_SUFFIXES)
    return Source(sequences.flair) if alone else Source(_built(out, name), sequences=sequences)


def _built(out: Path, name: str) -> Path:
    return out / VOLUMES / f"{name}{IMAGE_SUFFIX}"


def _refuse_names(found: Sequence[tuple[str, Path]]) -> None:
    """Refuse names that are no ids, and one that two patients have; ``found`` is name and where it comes from."""
    for name, origin in found:
        fault = id_fault(name)
        if fault:
            raise PipelineError(
                f"{shown(origin)}: the name {shown(name)!r} {fault} (expected a letter or digit, "
                "then letters, digits, '_', '-', '.' and space). Rename the file or folder."
            )
    twice = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
    if twice:
        files = ", ".join(str(origin) for name, origin in found if name == twice[0])
        raise PipelineError(f"two volumes of the name {twice[0]} ({files}). Rename one, or predict them apart.")


def _origin(source: Source) -> Path:
    """The file, or the folder of the series, that the name comes from."""
    if source.sequences:
        return source.sequences.flair
    return (source.dicom / source.series[0]).parent if source.dicom else source.image


@dataclass(frozen=True)
class _Content:
    """What one path stands for.

    ``found`` are name and source of each patient, ``refused`` name -> place and message. ``skipped`` is file -> why it
    is not used. ``uids`` are those of all DICOM series.
    """

    found: list[tuple[str, Source]]
    skipped: dict[Path, str] = field(default_factory=dict)
    refused: dict[str, tuple[Path, str]] = field(default_factory=dict)
    uids: frozenset[str] = frozenset()
    is_of_slices: bool = False


def _name_of(path: Path) -> str:
    return case_of(stem_of(path.name))


def _of_folder(folder: Path, out: Path, series: str | None) -> _Content:
    """What a folder holds: volumes, or DICOM, or slices; a mixture is refused."""
    from pipeline.cohort.reading import slices_by_patient

    listing = list_files(folder)
    files, skipped = _files_of(folder, listing, out)
    volumes = [path for path in files if is_volume_name(path.name)]
    rest = {path.relative_to(folder).as_posix(): path for path in files if not is_volume_name(path.name)}
    dicom = sum(map(is_dicom, rest.values()))
    images = [path for path in volumes if _name_of(path) != stem_of(path.name)]
    if images:
        refuse_described(folder)
    patients, others, unclear = group(set(volumes) - set(images))
    slices, faults, _ = slices_by_patient(listing)
    sliced = sorted(
        name for name, group in slices.items() if any(file.kind == "image" and str(file.path) in rest for file in group)
    )
    whole = len(images) + len(patients) + len(unclear)
    kinds = {"volumes": whole, "DICOM files": dicom, "patients in slices": len(sliced)}
    several = [f"{number} {kind}" for kind, number in kinds.items() if number]
    if len(several) > 1:
        raise PipelineError(f"{folder}: holds {' and '.join(several)}. Give the folders one by one.")
    if not several and faults:
        raise ManifestError({shown(path): [fault] for path, fault in faults.items()})
    if not several and others:
        names = shortened([path.name for path in others])
        raise PipelineError(
            f"{folder}: no file's name tells that it is FLAIR (found {names}). Give the FLAIR files themselves."
        )
    if not several:
        raise PipelineError(f"{folder}: no volume, DICOM or PATIENT_NUMBER.tif in it. Check the path.")
    if dicom:
        content = _of_dicom(folder, rest, out, series)
        return replace(content, skipped=skipped | others | content.skipped)
    if sliced:  # build_images counts every file
        skipped = {path: reason for path, reason in skipped.items() if is_volume_name(path.name)}
        return _Content([(name, Source(_built(out, name))) for name in sliced], skipped | others, is_of_slices=True)
    found = [(_name_of(path), _source(_name_of(path), Sequences(path), out)) for path in images]
    found += [(name, _source(name, sequences, out)) for name, sequences in patients.items()]
    headers = [name for name in listing.stamps if name.lower().endswith(HEADER_SUFFIXES)]
    voxels = {data_file(folder, name) for name in headers}
    skipped |= others | {path: "not a volume" for name, path in rest.items() if name not in voxels}
    advice = "Name them by --flair, --pre and --post, or remove all but one"
    refused = {
        name: (folder, f"which file is which cannot be told: {files}. {advice}.") for name, files in unclear.items()
    }
    return _Content(found, skipped, refused)


def _files_of(folder: Path, listing: Listing, out: Path) -> tuple[list[Path], dict[Path, str]]:
    """The files below a folder that may be an input; file -> why another is not.

    What a prediction built is passed over. A link that leads out of the folder, or to nothing, is refused, and so is
    what cannot be read; a link to a volume in the folder is a volume.
    """
    used: list[Path] = []
    skipped: dict[Path, str] = {}
    faults: dict[str, list[str]] = {}
    passed_over: dict[Path, bool] = {}
    results = out.resolve() if folder.resolve() in out.resolve().parents else None
    for name in sorted(listing.stamps):
        path = folder / name
        if path.parent not in passed_over:
            is_of_this_run = results is not None and path.parent.resolve().is_relative_to(results)
            passed_over[path.parent] = is_of_this_run or _is_result(path, folder)
        if passed_over[path.parent]:
            continue
        if _is_junk(name):
            skipped[path] = "hidden, or of an operating system"
        elif is_volume_name(name) and _is_link_within(path, folder):
            used.append(path)
        elif name in listing.faults:
            faults[shown(path)] = [listing.faults[name]]
        elif listing.skipped.get(name) == LINK:
            skipped[path] = LINK
        else:
            used.append(path)
    if faults:
        raise ManifestError(faults)
    return used, skipped


def _is_link_within(path: Path, folder: Path) -> bool:
    target = Path(os.path.realpath(path))
    return path.is_symlink() and target.is_file() and target.is_relative_to(os.path.realpath(folder))


def _is_result(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder of results that is ``folder`` or below it."""
    places = [folder / part for part in path.relative_to(folder).parents]
    return any((place / FINISHED).is_dir() or (place / BUILT_MARK).is_file() for place in places)


def _of_zip(path: Path, out: Path, wanted: str | None) -> _Content:
    """The FLAIR series of each study in a zip."""
    with unpacked(path) as files:
        junk = {path / name: "hidden, or of an operating system" for name in files if _is_junk(name)}
        content = _of_dicom(path, {name: file for name, file in files.items() if path / name not in junk}, out, wanted)
        return replace(content, skipped=junk | content.skipped)


def _of_dicom(place: Path, files: Mapping[str, Path], out: Path, wanted: str | None) -> _Content:
    """The FLAIR series of each study in a folder or zip; ``files`` is path in ``place`` -> file."""
    studies = find_studies(place, files, wanted)
    return _Content(
        [(name, Source(_built(out, name), dicom=place, series=series)) for name, series in studies.flair.items()],
        {place / name: reason for name, reason in studies.skipped.items()},
        {name: (place, message) for name, message in studies.refused.items()},
        studies.uids,
    )


def _is_junk(name: str) -> bool:
    path = PurePosixPath(name)
    return path.name.casefold() in JUNK_NAMES or any(map(is_junk_folder, path.parts))
