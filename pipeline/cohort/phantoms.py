"""A small synthetic dataset in the published folder layout, so that every command runs without the LGG download.

Each patient is a drawn, skull-stripped head: folded cortex, ventricles, and lesions that are bright on FLAIR, slightly
dark on T1 and sometimes ring-enhancing. Periventricular caps, small foci, coil hot spots, a bias field and a scanner
gain that differs between institutions make a FLAIR threshold fail. Nothing in it is taken from a patient.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError
from pipeline.scripts.manifest import CHANNELS, FLAIR

if TYPE_CHECKING:  # numpy loads only when a phantom is drawn, so that --help answers at once
    import numpy as np
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

RECIPE = 1
"""Version of the drawing; raise it when the same seed gives other bytes, so that old and new are never mixed."""

ARGUMENT_RANGES = {"patients": (1, 10_000), "size": (32, 1024), "slices": (4, 200), "seed": (0, 2**32 - 1)}


def _random(seed: int, *key: int) -> np.random.Generator:
    """The stream of one patient (or one block of patients), independent of how many patients are drawn."""
    import numpy as np

    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def patient_id(index: int, seed: int) -> str:
    """Name of patient ``index`` (from 0), such as ``PHANTOM_AC_0001``; the institution is part of the drawing."""
    from pipeline.cohort.anatomy import draw_site

    return f"PHANTOM_{draw_site(_random(seed, index))}_{index + 1:04d}"


def _missing_sequences(index: int, seed: int) -> tuple[str, ...]:
    """One patient in each block of eight lacks post-contrast, or both T1 sequences."""
    rng = _random(seed, index // 8, 1)
    unlucky, both = int(rng.integers(8)), bool(rng.random() < 0.35)
    if index % 8 != unlucky:
        return ()
    return (CHANNELS[0], CHANNELS[2]) if both else (CHANNELS[2],)


def make_patient(
    index: int, *, size: int, slices: int, seed: int, lesion: bool = True
) -> tuple[Bytes, Bytes, tuple[str, ...]]:
    """Draw a synthetic patient; the same arguments give the same bytes (with the same numpy and scipy).

    Args:
        index: Number of the patient, from 0; no patient depends on another.
        size: Height and width of a slice in pixels.
        slices: Mean number of slices; the patient's own D differs by up to 25 %.
        seed: Seed of the whole dataset.
        lesion: False gives the same head without its lesions.

    Returns:
        (D, H, W, 3) uint8 image in the order of CHANNELS, (D, H, W) uint8 mask of 0 and 255, and the names of the
        sequences that were replaced by FLAIR, as the publishers of the LGG data did with a missing one.
    """
    import numpy as np

    from pipeline.cohort.anatomy import draw_head, draw_slice

    _check_range("size", size)
    _check_range("slices", slices)
    _check_range("seed", seed)
    rng = _random(seed, index)
    head = draw_head(rng, slices)
    drawn = [draw_slice(head, number, size, rng, lesion=lesion) for number in range(len(head.heights))]
    image = np.stack([plane for plane, _ in drawn])
    mask = np.where(np.stack([mask for _, mask in drawn]), np.uint8(255), np.uint8(0))
    missing = _missing_sequences(index, seed)
    for name in missing:
        image[..., CHANNELS.index(name)] = image[..., FLAIR]
    return image, mask, missing


def _check_range(name: str, value: int) -> None:
    least, most = ARGUMENT_RANGES[name]
    if not least <= value <= most:
        raise PipelineError(f"{name} is {value}, expected {least} to {most}. Pass --{name} within that range.")


def _prepare(out: Path, call: dict[str, int], force: bool) -> Path:
    """Make OUT/kaggle_3m ready for this call, or refuse; a finished or interrupted run of the same call is kept."""
    folder, stamp = out / "kaggle_3m", out / "phantom.json"
    held = sorted(folder.iterdir()) if folder.is_dir() else []
    foreign = [entry.name for entry in held if not (entry.is_dir() and entry.name.startswith("PHANTOM_"))]
    if foreign:  # not even --force deletes what may be somebody's real data
        raise PipelineError(
            f"{folder} holds {len(foreign)} entries that are no phantoms, such as {foreign[0]}. Choose another folder."
        )
    same = stamp.is_file() and stamp.read_text(encoding="utf-8") == _stamp_text(call)
    if held and not same and not force:
        raise PipelineError(
            f"{folder} already holds {len(held)} patients of another call. Choose another folder or pass --force to "
            "replace them."
        )
    if force:  # first, or a kill amid the removal would leave half patients that count as whole
        stamp.unlink(missing_ok=True)
    for entry in (*(held if force else ()), *out.glob(".PHANTOM_*.partial")):
        shutil.rmtree(entry)
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(_stamp_text(call), encoding="utf-8")
    return folder


def _stamp_text(call: dict[str, int]) -> str:
    return json.dumps({"recipe": RECIPE, **call}, indent=2) + "\n"


def _write_patient(folder: Path, patient: str, image: Bytes, mask: Bytes) -> None:
    """Write the slices beside ``folder`` and rename them into it, so that a kill leaves no half patient."""
    from PIL import Image

    partial = folder.parent / f".{patient}.partial"
    partial.mkdir()
    for number, (plane, label) in enumerate(zip(image, mask, strict=True), start=1):
        Image.fromarray(plane).save(partial / f"{patient}_{number}.tif")
        Image.fromarray(label).save(partial / f"{patient}_{number}_mask.tif")
    partial.rename(folder / patient)


def make_phantoms(
    out: str | Path,
    *,
    patients: int = 24,
    size: int = 128,
    slices: int = 20,
    seed: int = 0,
    lesion_free: int = 0,
    force: bool = False,
) -> Path:
    """Write a synthetic dataset in the published folder layout; the same arguments give the same files.

    Args:
        out: The folder that receives ``kaggle_3m/``.
        patients: Number of patients, 1 to 10,000.
        size: Height and width of a slice in pixels, 32 to 1024.
        slices: Mean number of slices a patient, 4 to 200; a patient's own differs by up to 25 %.
        seed: Seed of the whole dataset, 0 or more.
        lesion_free: How many patients, the first ones, have no lesion.
        force: Replace the phantoms of another call in ``out``.

    Returns:
        The folder ``kaggle_3m``.

    Raises:
        PipelineError: An argument is out of its range, the folder holds something else, or the disk refuses.

    Example:
        >>> make_phantoms("demo", patients=2, size=64, slices=8)
        PosixPath('demo/kaggle_3m')
    """
    call = {"patients": patients, "size": size, "slices": slices, "seed": seed}
    for name, value in call.items():
        _check_range(name, value)
    if not 0 <= lesion_free <= patients:
        raise PipelineError(
            f"lesion-free is {lesion_free}, expected 0 to the number of patients, {patients}. "
            "Pass a smaller --lesion-free or more --patients."
        )
    try:
        return _written(Path(out), {**call, "lesion_free": lesion_free}, force)
    except OSError as error:
        raise PipelineError(f"{out}: cannot write the phantoms: {error}. Choose a writable OUT with space.") from error


def _written(out: Path, call: dict[str, int], force: bool) -> Path:
    from tqdm import tqdm

    patients, size, slices, seed = (call[name] for name in ARGUMENT_RANGES)
    needed = round(1.25 * patients * slices * size**2 * 4)
    existing = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise PipelineError(
            f"{out}: the phantoms may need {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free. "
            "Pass smaller --patients, --size or --slices, or choose another disk."
        )
    folder = _prepare(out, call, force)
    for index in tqdm(range(patients), desc="phantoms", unit="patient", disable=None):
        patient = patient_id(index, seed)
        if (folder / patient).is_dir():  # complete, because it was renamed into place
            continue
        lesion = index >= call["lesion_free"]
        image, mask, _ = make_patient(index, size=size, slices=slices, seed=seed, lesion=lesion)
        _write_patient(folder, patient, image, mask)
    return folder
