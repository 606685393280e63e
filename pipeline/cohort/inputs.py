"""What is given to be predicted -> one image volume a patient: files, folders, DICOM, slices, manifests."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.cohort.listing import list_files
from pipeline.cohort.manifest import read_images
from pipeline.cohort.names import id_fault, is_junk_folder
from pipeline.cohort.sequences import Sequences, group
from pipeline.errors import ManifestError, PipelineError
from pipeline.files import FINISHED
from pipeline.imaging.formats import NIFTI_SUFFIXES, is_volume_name, stem_of
from pipeline.scripts.faults import shown
from pipeline.scripts.manifest import IMAGE_SUFFIX, MANIFEST_NAME, VOLUMES
from pipeline.scripts.volumes import open_nifti

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.imaging.dicom import Series

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
    """Patient -> where the image comes from; folders of slices still to be built; file -> why it is not used."""

    sources: Mapping[str, Source]
    slice_folders: tuple[Path, ...] = ()
    skipped: Mapping[Path, str] = field(default_factory=dict)


def find_inputs(paths: Sequence[Path], out: Path, series: str | None = None) -> Inputs:
    """The volumes that paths stand for.

    Args:
        paths: Volume files, zips of DICOM, folders of volumes, DICOM or slices, manifests or their folders, other
            Decathlon datalists.
        out: The folder of the results, in which volumes are built.
        series: A SeriesNumber or SeriesInstanceUID to take for FLAIR.

    Raises:
        PipelineError: Nothing is found, two volumes have one name, or it cannot be told which file holds what.
    """
    found: list[tuple[str, Source]] = []
    slice_folders: list[Path] = []
    skipped: dict[Path, str] = {}
    for path in paths:
        is_list = path.suffix.lower() == ".json" and not path.is_dir()
        if is_list or (path / MANIFEST_NAME).is_file():
            found += [(name, _source(name, Sequences(image), out)) for name, image in read_images(path)]
        elif path.is_dir():
            content = _of_folder(path, out, series)
            found += content.found
            slice_folders += [path] if content.is_of_slices else []
            skipped |= content.skipped
        elif path.is_file() and path.name.lower().endswith(".zip"):
            content = _of_zip(path, out, series)
            found += content.found
            skipped |= content.skipped
        elif is_volume_name(path.name):
            name = _name_of(path)
            found.append((name, _source(name, Sequences(path), out)))
        else:
            raise PipelineError(
                f"{path}: {'no volume' if path.exists() else 'nothing there'} (expected NIfTI, MHA or NRRD, a zip of "
                "DICOM, a folder of volumes, DICOM or slices, or a manifest or other Decathlon datalist). Check the "
                "path."
            )
    if not found:
        raise PipelineError(f"{', '.join(map(str, paths))}: no volume in it (expected one or more). Check the path.")
    _refuse_names(found)
    return Inputs(dict(found), tuple(slice_folders), skipped)


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
    _refuse_names(found)
    return Inputs(dict(found))


def build_volume(source: Source) -> None:
    """Build the NIfTI volume of a source that has none yet.

    Raises:
        PipelineError: A file cannot be read, or the series does not make one volume.
    """
    from pipeline.imaging.formats import join_sequences
    from pipeline.imaging.nifti import save_image

    if source.sequences:
        save_image(join_sequences(source.sequences.flair, source.sequences.pre, source.sequences.post), source.image)
    elif source.dicom:
        import tempfile

        from pipeline.imaging.dicom import convert, series_of
        from pipeline.imaging.formats import read_volume

        with series_of(source.dicom, source.series) as series, tempfile.TemporaryDirectory() as folder:
            save_image(read_volume(convert(series, Path(folder))), source.image)


def build_one(path: Path, folder: Path) -> Path:
    """The NIfTI volume of the one patient that a path stands for, built in ``folder`` where it is not there yet.

    Raises:
        PipelineError: The path stands for no patient, or for several.
    """
    from pipeline.cohort.reading import build_images

    found = find_inputs([path], folder)
    if len(found.sources) != 1:
        raise PipelineError(f"{path}: {len(found.sources)} patients (expected one). Use predict_volumes for several.")
    (source,) = found.sources.values()
    for slices in found.slice_folders:
        build_images(slices, source.image.parent)
    build_volume(source)
    return source.image


def write_segmentation_of(source: Source, mask: NDArray[Any], path: Path) -> None:
    """Write a mask, on the grid of ``source.image``, as DICOM SEG of the series that the image was made of."""
    from pipeline.imaging.dicom import series_of
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


def _refuse_names(found: Sequence[tuple[str, Source]]) -> None:
    for name, source in found:
        fault = id_fault(name)
        if fault:
            raise PipelineError(
                f"{shown(_origin(source))}: the name {shown(name)!r} {fault} (expected a letter or digit, "
                "then letters, digits, '_', '-', '.' and space). Rename the file or folder."
            )
    twice = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
    if twice:
        files = ", ".join(str(_origin(source)) for name, source in found if name == twice[0])
        raise PipelineError(f"two volumes of the name {twice[0]} ({files}). Rename one, or predict them apart.")


def _origin(source: Source) -> Path:
    return source.sequences.flair if source.sequences else source.dicom or source.image


@dataclass(frozen=True)
class _Content:
    """What one path stands for: name and source of each patient, file -> why it is not used."""

    found: list[tuple[str, Source]]
    skipped: dict[Path, str]
    is_of_slices: bool = False


def _name_of(path: Path) -> str:
    return stem_of(path.name).removesuffix("_image")


def _of_folder(folder: Path, out: Path, series: str | None) -> _Content:
    """What a folder holds: volumes, or DICOM, or slices; a mixture is refused."""
    from pipeline.cohort.reading import slices_by_patient

    volumes, dicom, hidden = _files_of(folder, out)
    images = [path for path in volumes if stem_of(path.name).endswith("_image")]
    patients, others, unclear = group(set(volumes) - set(images))
    if unclear:
        advice = "Name them by --flair, --pre and --post"
        raise ManifestError(
            {name: [f"which file is which cannot be told: {files}. {advice}."] for name, files in unclear.items()}
        )
    slices, faults, _ = slices_by_patient(list_files(folder))
    slices = {
        name: [file for file in files if not _is_result(folder / file.path, folder)] for name, files in slices.items()
    }
    sliced = sorted(name for name, files in slices.items() if any(file.kind == "image" for file in files))
    kinds = {"volumes": len(images) + len(patients), "DICOM files": len(dicom), "patients in slices": len(sliced)}
    several = [f"{number} {kind}" for kind, number in kinds.items() if number]
    if len(several) > 1:
        raise PipelineError(f"{folder}: holds {' and '.join(several)}. Give the folders one by one.")
    if not several and faults:
        raise ManifestError({shown(path): [fault] for path, fault in faults.items()})
    if not several and others:
        names = ", ".join(shown(path.name) for path in list(others)[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise PipelineError(
            f"{folder}: no file's name tells that it is FLAIR (found {names}{more}). Give the FLAIR files themselves."
        )
    if not several:
        raise PipelineError(f"{folder}: no volume, DICOM or PATIENT_NUMBER.tif in it. Check the path.")
    if dicom:
        content = _of_dicom(folder, {path.relative_to(folder).as_posix(): path for path in dicom}, out, series)
        return _Content(content.found, hidden | others | content.skipped)
    if sliced:
        return _Content([(name, Source(_built(out, name))) for name in sliced], hidden | others, is_of_slices=True)
    found = [(_name_of(path), _source(_name_of(path), Sequences(path), out)) for path in images]
    found += [(name, _source(name, sequences, out)) for name, sequences in patients.items()]
    return _Content(found, hidden | others)


def _files_of(folder: Path, out: Path) -> tuple[list[Path], list[Path], dict[Path, str]]:
    """Volume files, DICOM files and hidden volume files below a folder; what a prediction built is passed over."""
    from pipeline.imaging.dicom import is_dicom

    def fail(error: OSError) -> None:
        raise PipelineError(f"{error.filename}: the folder cannot be read ({error.strerror}). Mend its permissions.")

    volumes: list[Path] = []
    dicom: list[Path] = []
    hidden: dict[Path, str] = {}
    for parent, names, files in os.walk(folder, onerror=fail):
        place = Path(parent)
        names.sort()
        if _is_result(place / "any", folder) or place.resolve() == out.resolve():
            names.clear()
            continue
        for path in (place / name for name in sorted(files)):
            if any(is_junk_folder(part) for part in path.relative_to(folder).parts):
                hidden |= {path: "hidden, or of an operating system"} if is_volume_name(path.name) else {}
            elif is_volume_name(path.name):
                if path.is_symlink():
                    _refuse_link(path, folder)
                volumes.append(path)
            elif not path.is_symlink() and is_dicom(path):
                dicom.append(path)
    return volumes, dicom, hidden


def _is_result(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder of results that is ``folder`` or below it."""
    places = [folder / part for part in path.relative_to(folder).parents]
    return any((place / FINISHED).is_dir() or (place / BUILT_MARK).is_file() for place in places)


def _refuse_link(path: Path, folder: Path) -> None:
    target = Path(os.path.realpath(path))
    if not target.is_file() or not target.is_relative_to(os.path.realpath(folder)):
        raise PipelineError(
            f"{path}: a symbolic link out of the folder, or to nothing (not followed). Replace it by the file itself."
        )


def _of_zip(path: Path, out: Path, wanted: str | None) -> _Content:
    """The FLAIR series of each study in a zip; what is not used keeps its name in the zip."""
    from pipeline.imaging.dicom import is_dicom, unpacked

    with unpacked(path) as files:
        names = {file: name for name, file in files.items() if is_dicom(file)}
        content = _of_dicom(path, {name: file for file, name in names.items()}, out, wanted)
        return _Content(content.found, {path / names[file]: reason for file, reason in content.skipped.items()})


def _of_dicom(place: Path, files: Mapping[str, Path], out: Path, wanted: str | None) -> _Content:
    """The FLAIR series of each study in a folder or zip; the studies are named by their folders, never by a header.

    ``files`` is path in ``place`` -> file.
    """
    from pipeline.imaging.dicom import choose_flair, find_series

    names = {file: name for name, file in files.items()}
    series, skipped = find_series([*names])
    if not series:
        raise PipelineError(f"{place}: no DICOM image in it ({len(skipped)} other files). Check the path.")
    studies: dict[str, list[Series]] = {}
    for one in series:
        studies.setdefault(one.study, []).append(one)
    if wanted and len(studies) > 1:
        raise PipelineError(f"{place}: {len(studies)} studies (expected one with --series). Give one folder.")
    found = []
    for study in studies.values():
        flair = choose_flair(study, place, wanted)
        name = place.stem if place.is_file() else Path(os.path.abspath(place)).name  # noqa: PTH100
        if len(studies) > 1:
            folders = {PurePosixPath(names[file]).parts[:-1] for one in study for file in one.files}
            tops = {parts[0] if parts else "" for parts in folders}
            name = tops.pop() if len(tops) == 1 else ""
        if not name:
            raise PipelineError(
                f"{place}: {len(studies)} studies that do not lie in a folder each. Sort them into folders, "
                "one a patient: the results bear the folders' names."
            )
        own = tuple(names[file] for file in flair.files)
        found.append((name, Source(_built(out, name), dicom=place, series=own)))
        for one in study:
            if one is not flair:
                skipped |= dict.fromkeys(one.files, f"series {one}, not FLAIR")
    return _Content(found, skipped)
