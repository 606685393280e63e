"""Write a small synthetic dataset in the published folder layout, to try every command without the LGG download."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cohort.names import JUNK_NAMES
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.cohort.anatomy import Bytes

RECIPE = 1
"""Version of the drawing. Raise it when the same seed gives other bytes, so that old and new files are never mixed."""
SLICES, VOLUMES = "kaggle_3m", "volumes"
"""Names of the folders of slices and of NIfTI volumes."""
WIDTH_MM, HEIGHT_MM = 230.0, 140.0
"""Size of a slice, and of the mean stack of slices. The voxel size of volumes follows from it."""
SEQUENCES = ("t1n", "flair", "t1c")
"""Endings of file names, as in BraTS, in the order of the channels."""


def make_phantoms(
    out: str | Path,
    *,
    patients: int = 24,
    size: int = 128,
    slices: int = 20,
    seed: int = 0,
    lesion_free: int = 0,
    volumes: bool = False,
    force: bool = False,
) -> Path:
    """Write a synthetic dataset in the published folder layout. The same arguments give the same files.

    Args:
        out: The folder in which ``kaggle_3m/`` is written.
        patients: Number of patients, 1 to 10,000.
        size: Height and width of a slice in pixels, 32 to 1024.
        slices: Mean number of slices per patient, 4 to 200. A single patient's number differs by up to 25 %.
        seed: Seed of the whole dataset, from 0 to 2^32 - 1.
        lesion_free: Number of patients without a lesion, from 0 to ``patients``. They are the first ones.
        volumes: Also write each patient's FLAIR, T1 and mask as NIfTI files with a voxel size, named as in BraTS, in
            ``out/volumes``.
        force: Replace phantoms in ``out`` that were made with other arguments.

    Returns:
        The folder ``kaggle_3m``.

    Raises:
        PipelineError: An argument is out of its range, the folder holds other files, or a file cannot be written.

    Examples:
        >>> import pipeline
        >>> pipeline.make_phantoms("demo", patients=2, size=64, slices=8).as_posix()
        'demo/kaggle_3m'
    """
    call = {"patients": patients, "size": size, "slices": slices, "seed": seed, "lesion_free": lesion_free}
    ranges = {"patients": (1, 10_000), "size": (32, 1024), "slices": (4, 200), "seed": (0, 2**32 - 1)}
    for name, (least, most) in {**ranges, "lesion_free": (0, patients)}.items():
        if not least <= call[name] <= most:
            option = name.replace("_", "-")
            raise PipelineError(f"--{option} {call[name]} (expected {least} to {most}). Pass another --{option}.")
    from pipeline.cohort.anatomy import make_patient, patient_id
    from pipeline.progress import progress

    out = Path(out)
    stamp = json.dumps({"recipe": RECIPE, **call}, indent=2) + "\n"
    try:
        existing = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
        free, needed = shutil.disk_usage(existing).free, 1.25 * patients * slices * size**2 * 4
        if needed > free:
            raise PipelineError(
                f"{out}: the phantoms may need {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free. "
                "Pass smaller --patients, --size or --slices, or choose another disk."
            )
        writers: dict[Path, Callable[[Path, str, Bytes, Bytes], None]] = {out / SLICES: _write_slices}
        if volumes:
            writers[out / VOLUMES] = lambda *given: _write_volumes(*given, spacing=HEIGHT_MM / slices)
        folder = _prepared(out, stamp, writers, force=force)
        for index in progress(range(patients), "phantoms", "patient"):
            patient = patient_id(index, seed)
            # An existing folder is complete, because it is renamed when finished.
            missing = [parent for parent in writers if not (parent / patient).is_dir()]
            if not missing:
                continue
            image, mask = make_patient(index, size=size, slices=slices, seed=seed, lesion=index >= lesion_free)
            for parent in missing:
                partial = out / f".{patient}.partial"
                partial.mkdir()
                writers[parent](partial, patient, image, mask)
                parent.mkdir(exist_ok=True)
                partial.rename(parent / patient)
    except OSError as error:
        raise PipelineError(f"{out}: cannot write the phantoms: {error}. Choose a writable OUT with space.") from error
    return folder


def _write_slices(folder: Path, patient: str, image: Bytes, mask: Bytes) -> None:
    from PIL import Image

    for number, (plane, label) in enumerate(zip(image, mask, strict=True), start=1):
        Image.fromarray(plane).save(folder / f"{patient}_{number}.tif")
        Image.fromarray(label).save(folder / f"{patient}_{number}_mask.tif")


def _write_volumes(folder: Path, patient: str, image: Bytes, mask: Bytes, *, spacing: float) -> None:
    import nibabel as nib
    import numpy as np

    from pipeline.scripts.volumes import AFFINE

    width = WIDTH_MM / mask.shape[2]
    parts = {name: image[..., channel] for channel, name in enumerate(SEQUENCES)} | {"seg": (mask > 0).astype(np.uint8)}
    for name, slices in parts.items():
        volume = nib.Nifti1Image(slices.transpose(1, 2, 0), AFFINE @ np.diag([width, width, spacing, 1]))
        volume.header.set_xyzt_units("mm")
        volume.to_filename(folder / f"{patient}_{name}.nii.gz")


def _prepared(out: Path, stamp: str, needed: Collection[Path], *, force: bool) -> Path:
    """The folder ``out/kaggle_3m``, ready for writing. Patients of an earlier run with the same ``stamp`` are kept."""
    folder, file = out / SLICES, out / "phantom.json"
    parts = [part for part in (folder, out / VOLUMES) if part.is_dir()]
    entries = [entry for part in parts for entry in sorted(part.iterdir())]
    held = [entry for entry in entries if entry.is_dir() and entry.name.startswith("PHANTOM_")]
    # A manifest in the same folder has volumes/ too, with files. They are in the way only of phantoms there.
    junk = [entry for entry in entries if entry.name.casefold() in JUNK_NAMES or entry.name.startswith("._")]
    foreign = [str(entry.relative_to(out)) for entry in entries if entry not in held + junk and entry.parent in needed]
    if foreign:  # even --force must not delete what may be real data
        raise PipelineError(f"{out}: holds other files than phantoms, such as {foreign[0]}. Choose another folder.")
    if held and not force and not (file.is_file() and file.read_text(encoding="utf-8") == stamp):
        raise PipelineError(
            f"{folder}: holds phantoms that were made with other arguments. Choose another folder or pass --force."
        )
    if force:  # first, so that a kill during the removal leaves no incomplete patients that count as complete
        file.unlink(missing_ok=True)
    for entry in (*(held if force else ()), *out.glob(".PHANTOM_*.partial")):
        shutil.rmtree(entry)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(stamp, encoding="utf-8")
    return folder
