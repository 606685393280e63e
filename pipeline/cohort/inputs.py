"""Find one image volume for each patient in the inputs of ``predict``: files, folders, DICOM, slices, manifests."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.cohort.cases import HEADER_SUFFIXES, data_file
from pipeline.cohort.listing import LINK, RESULT, Listing, list_files
from pipeline.cohort.manifest import read_images
from pipeline.cohort.names import JUNK_NAMES, id_fault, is_junk_folder, shortened
from pipeline.cohort.sequences import MASK_KINDS, Sequences, folder_of, group
from pipeline.cohort.studies import find_studies, is_uid
from pipeline.errors import ManifestError, PipelineError
from pipeline.imaging.dicom import convert, is_dicom, series_of, unpacked
from pipeline.imaging.formats import NIFTI_SUFFIXES, case_of, is_volume_name, stem_of
from pipeline.scripts.faults import shown
from pipeline.scripts.manifest import IMAGE_SUFFIX, MANIFEST_NAME, VOLUMES, refuse_described
from pipeline.scripts.sequences import is_t1_flair, sequence_of
from pipeline.scripts.volumes import open_nifti

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a patient's image comes from.

    Args:
        image: The NIfTI volume that the networks read. It is built first from ``sequences`` or ``dicom``, if given.
        sequences: FLAIR and T1 in separate files, or FLAIR in a format other than NIfTI.
        dicom: A folder or zip that holds a DICOM series.
        series: The files of the FLAIR series, as paths relative to ``dicom``.
    """

    image: Path
    sequences: Sequences | None = None
    dicom: Path | None = None
    series: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All paths that an error message may name."""
        parts = (self.sequences.flair, self.sequences.pre, self.sequences.post) if self.sequences else ()
        return tuple(path for path in (*parts, self.dicom, self.image) if path)

    @property
    def is_built(self) -> bool:
        """Whether the NIfTI volume is built from other files."""
        return self.sequences is not None or self.dicom is not None


@dataclass(frozen=True)
class Inputs:
    """The patients that ``find_inputs`` found.

    Args:
        sources: Where the image comes from, by patient.
        slice_folders: Folders of slices whose volumes are not yet built.
        skipped: Why a file is not used, by file.
        refused: Why it is not clear which file or series is which, by patient. Up to the first colon, the message holds
            no text of a header or file name, and so no patient data.
    """

    sources: Mapping[str, Source]
    slice_folders: tuple[Path, ...] = ()
    skipped: Mapping[Path, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


_NO_FLAIR = re.compile(r"(?:.*[-_. ])?(t2w?|adc|dwi|d?seg|mask|label)", re.IGNORECASE)
"""Names of other images than FLAIR and T1, and of masks."""


def find_inputs(paths: Sequence[Path], out: Path, series: str | None = None) -> Inputs:
    """The patients in files and folders, and where the image of each patient comes from.

    Args:
        paths: Volume files, zips of DICOM, folders of volumes, DICOM or slices, manifests or their folders, or other
            Decathlon datalists.
        out: The folder for the results, in which volumes are built.
        series: A SeriesNumber or SeriesInstanceUID to use as FLAIR; None to find FLAIR by headers.

    Raises:
        PipelineError: No volume is found, two volumes have one name, or no patient has clear names.
    """
    contents = [_content_of(path, out, series) for path in paths]
    found = [one for content in contents for one in content.found]
    refused = [(name, *why) for content in contents for name, why in content.refused.items()]
    uids = set().union(*(content.uids for content in contents))
    if series and is_uid(series) and uids and series not in uids:
        raise PipelineError(f"--series {series}: no series with this UID (found {len(uids)} others). Check the UID.")
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
        named = sequence_of(stem_of(path.name))
        if is_t1_flair(stem_of(path.name)) or (named and named[1] != "flair"):
            raise PipelineError(f"{path}: T1 by its name (expected FLAIR). Give FLAIR, or rename the file.")
        if other := _NO_FLAIR.fullmatch(stem_of(path.name)):
            raise PipelineError(f"{path}: {other[1]} by its name (expected FLAIR). Give FLAIR, or rename the file.")
        return _Content([(_name_of(path), _source(_name_of(path), Sequences(path), out))])
    raise PipelineError(
        f"{path}: {'no volume' if path.exists() else 'nothing there'} (expected NIfTI, MHA or NRRD, a zip of DICOM, a "
        "folder of volumes, DICOM or slices, or a manifest or other Decathlon datalist). Check the path."
    )


def _refuse_named(path: Path, wanted: str, others: Sequence[str], own: Sequence[str]) -> None:
    """Refuse a file whose name says that it is another sequence, without the wanted one beside it (``t1_in_flair``)."""
    stem = stem_of(path.name)
    named = sequence_of(stem)
    if named and named[1] in others and not any(word in stem.lower() for word in own):
        found = {"pre": "T1", "post": "post-contrast T1", "flair": "FLAIR"}[named[1]]
        raise PipelineError(f"{path}: {found} by its name (expected {wanted}). Give {wanted}, or rename the file.")


def name_sequences(given: Sequence[Path], pre: Path | None, post: Path | None, out: Path) -> Inputs:
    """The one patient whose FLAIR, pre- and post-contrast T1 are given as separate files.

    Args:
        given: A sequence with only the FLAIR file.
        pre: The pre-contrast T1 file; None without one.
        post: The post-contrast T1 file; None without one.
        out: The folder for the results, in which the volume is built.

    Raises:
        PipelineError: There is not exactly one FLAIR file, a file does not exist, its name says that it is another
            sequence, or the name is not allowed.
    """
    if len(given) != 1 or not is_volume_name(given[0].name):
        raise PipelineError("a separate T1 file needs exactly one FLAIR file. Give --flair FILE.")
    flair = given[0]
    for path, wanted, others, own in (
        (flair, "FLAIR", ("pre", "post"), ("flair", "t2f")),
        (pre, "pre-contrast T1", ("flair",), ("t1",)),
        (pre, "pre-contrast T1", ("post",), ("pre",)),
        (post, "post-contrast T1", ("flair",), ("t1",)),
    ):
        if path and not path.is_file():
            raise PipelineError(f"{path}: no such file. Check the path.")
        if path:
            _refuse_named(path, wanted, others, own)
    name = _name_of(flair)
    found = [(name, _source(name, Sequences(flair, pre, post), out))]
    _refuse_names([(name, flair)])
    return Inputs(dict(found))


def build_volume(source: Source) -> list[str]:
    """Build the NIfTI volume of a source, if it is not a NIfTI volume already.

    Returns:
        A line for each T1 sequence whose place FLAIR takes.

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
    """The NIfTI volume of the only patient in a file or folder, built if it is not a NIfTI volume already.

    Args:
        path: The file or folder of one patient.
        folder: The folder in which the volume is built.

    Raises:
        PipelineError: The path holds no patient, or several.
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
    """Write a mask as DICOM SEG for the series that the image was built from.

    Args:
        source: The source of the image, with a DICOM series.
        mask: (I, J, K), values 0 and 1, on the grid of ``source.image``.
        path: The file to write, whose name ends in ``.dcm``.

    Raises:
        PipelineError: The source is not DICOM, or its headers lack something that DICOM SEG needs.
    """
    from pipeline.imaging.dicom_seg import write_segmentation

    if source.dicom is None:
        raise PipelineError(f"{source.image}: not built from DICOM (expected a DICOM series). Leave --dicom-seg out.")
    with series_of(source.dicom, source.series) as series:
        write_segmentation(path, mask, open_nifti(source.image).affine, series)


def _source(name: str, sequences: Sequences, out: Path) -> Source:
    """The source of one patient. A NIfTI file without T1 files is read as it is. Others are converted."""
    alone = not sequences.pre and not sequences.post and sequences.flair.name.lower().endswith(NIFTI_SUFFIXES)
    return Source(sequences.flair) if alone else Source(_built(out, name), sequences=sequences)


def _built(out: Path, name: str) -> Path:
    return out / VOLUMES / f"{name}{IMAGE_SUFFIX}"


def _refuse_names(found: Sequence[tuple[str, Path]]) -> None:
    """Refuse names that are not valid ids, and a name that two patients have. ``found`` holds names and origins."""
    for name, origin in found:
        fault = id_fault(name)
        if fault:
            raise PipelineError(
                f"{shown(origin)}: the name {shown(name)!r} {fault} (expected a letter or digit, "
                "then letters, digits, '_', '-', '.' and space). Rename the file or folder."
            )
    # Many disks ignore upper and lower case.
    twice = [name for name, count in Counter(name.casefold() for name, _ in found).items() if count > 1]
    if twice:
        same = [(name, origin) for name, origin in found if name.casefold() == twice[0]]
        files = ", ".join(str(origin) for _, origin in same)
        raise PipelineError(f"two volumes are named {same[0][0]} ({files}). Rename one, or predict them separately.")


def _origin(source: Source) -> Path:
    """The file, or the folder of the DICOM series, that gives the patient its name."""
    if source.sequences:
        return source.sequences.flair
    return (source.dicom / source.series[0]).parent if source.dicom else source.image


@dataclass(frozen=True)
class _Content:
    """The content of one path that the user gave.

    Args:
        found: Name and source of each patient.
        skipped: Why a file is not used, by file.
        refused: Place and message of each patient that is not clear, by name.
        uids: SeriesInstanceUIDs of all DICOM series.
        is_of_slices: Whether the path is a folder of slices.
    """

    found: list[tuple[str, Source]]
    skipped: dict[Path, str] = field(default_factory=dict)
    refused: dict[str, tuple[Path, str]] = field(default_factory=dict)
    uids: frozenset[str] = frozenset()
    is_of_slices: bool = False


def _name_of(path: Path) -> str:
    return unicodedata.normalize("NFC", case_of(stem_of(path.name)))


def _of_folder(folder: Path, out: Path, series: str | None) -> _Content:
    """The content of a folder of volumes, DICOM or slices. A mixture of these is refused."""
    from pipeline.cohort.reading import slices_by_patient

    listing = list_files(folder)
    files, skipped = _files_of(folder, listing)
    volumes = [path for path in files if is_volume_name(path.name)]
    rest = {path.relative_to(folder).as_posix(): path for path in files if not is_volume_name(path.name)}
    dicom = sum(map(is_dicom, rest.values()))
    named = [path for path in volumes if case_of(stem_of(path.name)) != stem_of(path.name)]
    images = [path for path in named if folder_of(path.relative_to(folder))[0] not in MASK_KINDS]
    if images:
        refuse_described(folder)
    patients, others, unclear = group(set(volumes) - set(images), folder)
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
        raise PipelineError(f"{folder}: no file name says FLAIR (found {names}). Give the FLAIR files themselves.")
    if not several:
        raise PipelineError(f"{folder}: no volume, DICOM or PATIENT_NUMBER.tif in it. Check the path.")
    if dicom:
        content = _of_dicom(folder, rest, out, series)
        return replace(content, skipped=skipped | others | content.skipped)
    if sliced:  # build_images counts the other files
        skipped = {path: reason for path, reason in skipped.items() if is_volume_name(path.name)}
        return _Content([(name, Source(_built(out, name))) for name in sliced], skipped | others, is_of_slices=True)
    found = [(_name_of(path), _source(_name_of(path), Sequences(path), out)) for path in images]
    found += [(name, _source(name, sequences, out)) for name, sequences in patients.items()]
    headers = [name for name in listing.stamps if name.lower().endswith(HEADER_SUFFIXES)]
    voxels = {data_file(folder, name) for name in headers}
    skipped |= others | {path: "not a volume" for name, path in rest.items() if name not in voxels}
    advice = "Name them with --flair, --pre and --post, remove all but one, or name each after its patient"
    refused = {
        name: (folder, f"it is not clear which file is which: {files}. {advice}.") for name, files in unclear.items()
    }
    return _Content(found, skipped, refused)


def _files_of(folder: Path, listing: Listing) -> tuple[list[Path], dict[Path, str]]:
    """The files in a folder that may be an input, and why a file is skipped, by file.

    A link to a volume in the folder counts as a volume. A link that leads out of
    the folder or to nothing is refused, and so is a file that cannot be read.
    """
    used: list[Path] = []
    skipped: dict[Path, str] = {}
    faults: dict[str, list[str]] = {}
    for name in sorted(listing.stamps):
        path = folder / name
        if _is_junk(name):
            skipped[path] = "hidden, or written by an operating system"
        elif listing.skipped.get(name) == RESULT:
            skipped[path] = RESULT
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


def _of_zip(path: Path, out: Path, wanted: str | None) -> _Content:
    """The FLAIR series of each study in a zip."""
    with unpacked(path) as files:
        junk = {path / name: "hidden, or written by an operating system" for name in files if _is_junk(name)}
        content = _of_dicom(path, {name: file for name, file in files.items() if path / name not in junk}, out, wanted)
        return replace(content, skipped=junk | content.skipped)


def _of_dicom(place: Path, files: Mapping[str, Path], out: Path, wanted: str | None) -> _Content:
    """The FLAIR series of each study in a folder or zip. ``files`` maps paths inside ``place`` to files on the disk."""
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
