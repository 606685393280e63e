"""Draw pictures of predicted volumes: one PNG for each slice, one GIF for each patient. Existing ones are kept."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PipelineError
from pipeline.imaging.nifti import load_image, load_label, load_map, shown_in_gray, spacing_mm
from pipeline.pages.overlays import contour_frame, gif_bytes, heat_frame, picture_bytes, slices_of_interest
from pipeline.progress import progress
from pipeline.scripts.files import sha256_file, write_durably, writing_errors
from pipeline.scripts.manifest import FLAIR

DSC_FIGURE = "dsc.png"
STAMP = ".drawn.json"
"""A file in each patient's folder, written last: the sources and options of its pictures."""
DRAWN_BY = 4
"""Version of the drawing code. Increase it when pictures change, so that old ones are drawn again."""
UNCERTAIN = 0.1
"""Lowest uncertainty (0 to 0.5) for which a slice is drawn, even if no mask touches it."""
MAX_DRAWERS = 4
"""Processes that draw at the same time, at most."""
GAP = 4
"""Pixels between a slice and its uncertainty map."""


@dataclass(frozen=True)
class Case:
    """The NIfTI files from which a volume's pictures are drawn.

    Args:
        name: The volume's name.
        image: The file of the image.
        mask: The file of the predicted mask.
        label: The file of the true mask; None if there is no truth.
        uncertainty: The file of the uncertainty map. It need not exist.
    """

    name: str
    image: Path
    mask: Path
    label: Path | None = None
    uncertainty: Path | None = None

    @property
    def map(self) -> Path | None:
        """The file of the uncertainty map; None if it does not exist."""
        return self.uncertainty if self.uncertainty and self.uncertainty.is_file() else None


def draw_cases(cases: Sequence[Case], out: Path, *, all_slices: bool = False) -> int:
    """Draw ``out/NAME/slice_NNN.png`` and ``out/NAME.gif`` for every case, several cases in parallel.

    The contours on FLAIR are red (prediction), green (truth) and yellow (both). An uncertainty map is drawn beside
    them. Slices are drawn where a mask has a voxel, or the uncertainty reaches ``UNCERTAIN``. Without such
    a slice, the middle slice is drawn.

    Args:
        cases: The volumes to draw.
        out: The folder of the pictures.
        all_slices: Draw every slice.

    Returns:
        The number of cases that were drawn. The others had their pictures already.

    Raises:
        PipelineError: A volume cannot be read, a file cannot be written, or a drawing process was killed.
    """
    stamps = [{"all_slices": all_slices, "sources": _sources(case)} for case in cases]
    waiting = [
        (case, out, stamp) for case, stamp in zip(cases, stamps, strict=True) if _read_stamp(out, case.name) != stamp
    ]
    workers = min(MAX_DRAWERS, os.cpu_count() or 1, len(waiting))
    if workers <= 1:
        faults = [_draw(job) for job in waiting]
    else:
        # Spawned, not forked: a fork may hang, because the networks of this process have started threads.
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
                drawn = pool.map(_draw, waiting)
                faults = list(progress(drawn, "figures", "patient", len(waiting)))
        except BrokenProcessPool as error:
            raise PipelineError(
                f"{out}: a process that draws was killed, mostly because memory ran out. Free memory and run again; "
                "finished pictures stay."
            ) from error
    if any(faults):
        raise PipelineError("\n".join(filter(None, faults)))
    return len(waiting)


def remove_outdated(cases: Sequence[Case], out: Path) -> None:
    """Remove pictures that do not show the current files of these cases, so that nobody takes them for current ones.

    Args:
        cases: The current volumes.
        out: The folder of the pictures.
    """
    current = {case.name: case for case in cases}
    with writing_errors(out):
        for stamp in out.glob(f"*/{STAMP}"):
            name = stamp.parent.name
            if name not in current or _read_stamp(out, name).get("sources") != _sources(current[name]):
                shutil.rmtree(stamp.parent)
                (out / f"{name}.gif").unlink(missing_ok=True)
        (out / DSC_FIGURE).unlink(missing_ok=True)


def _sources(case: Case) -> dict[str, Any]:
    """The hashes of all files that a case's pictures depend on, and the version of the drawing code."""
    files = {"image": case.image, "mask": case.mask, "label": case.label, "uncertainty": case.map}
    try:
        return {"drawn_by": DRAWN_BY, **{kind: sha256_file(path) for kind, path in files.items() if path}}
    except OSError as error:
        raise PipelineError(f"{error.filename}: cannot be read ({error.strerror}). Restore it.") from error


def _read_stamp(out: Path, name: str) -> dict[str, Any]:
    """The sources and options of a case's pictures; empty if a picture is missing."""
    try:
        stamp: dict[str, Any] = json.loads((out / name / STAMP).read_bytes())
        drawn = stamp.pop("pictures")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    is_whole = len(list((out / name).glob("slice_*.png"))) == drawn and (out / f"{name}.gif").is_file()
    return stamp if is_whole else {}


def _end_with_parent() -> None:
    """End this process when its parent is killed. Otherwise it would wait for work for ever."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _draw(job: tuple[Case, Path, dict[str, Any]]) -> str:
    """Draw one case. Return its error as text, so that the errors of all cases are reported together."""
    try:
        _draw_case(*job)
    except PipelineError as error:
        return str(error)
    return ""


def _draw_case(case: Case, out: Path, stamp: dict[str, Any]) -> None:
    image = shown_in_gray(load_image(case.image)[..., FLAIR])
    mask = load_label(case.mask)
    truth = load_label(case.label) if case.label else None
    uncertainty = load_map(case.map) if case.map else None
    distances = spacing_mm(case.image)
    spacing = distances[:2] if distances else None
    depth = image.shape[2]
    unsure = None if uncertainty is None else uncertainty >= UNCERTAIN
    wanted = range(depth) if stamp["all_slices"] else slices_of_interest(mask, truth, unsure) or [depth // 2]
    folder = out / case.name
    with writing_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    frames = []
    for z in wanted:
        caption = f"slice {z + 1}/{depth}"
        true = None if truth is None else truth[..., z]
        frame = contour_frame(image[..., z], mask[..., z], true, caption=caption, spacing=spacing)
        if uncertainty is not None:
            spaced = np.pad(frame, ((0, 0), (0, GAP), (0, 0)))
            frame = np.hstack([spaced, heat_frame(image[..., z], uncertainty[..., z], spacing)])
        write_durably(folder / f"slice_{z + 1:03d}.png", picture_bytes(frame, "png", compress_level=4))
        frames.append(frame)
    write_durably(out / f"{case.name}.gif", gif_bytes(frames))
    write_durably(folder / STAMP, json.dumps({**stamp, "pictures": len(wanted)}).encode())
