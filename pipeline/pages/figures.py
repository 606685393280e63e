"""Pictures of predicted volumes as files: a PNG a slice, a GIF a patient. What is drawn already is not drawn again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.scripts.files import sha256_file, write_durably, writing_errors
from pipeline.scripts.manifest import FLAIR

DSC_FIGURE = "dsc.png"
STAMP = ".drawn.json"
"""In each patient's folder, written last: what it was drawn from."""
DRAWN_BY = 2
"""Goes up when the pictures change."""
UNCERTAIN = 0.1
"""Deviation of probabilities from which a slice is drawn though no mask touches it."""
MAX_DRAWERS = 4
"""Most processes that draw at once."""


@dataclass(frozen=True)
class Case:
    """A volume and what was found in it.

    Args:
        name: Name of the folder of its pictures.
        image: The image's NIfTI file, (H, W, D, 3).
        mask: The predicted mask's NIfTI file, (H, W, D).
        label: The true mask's NIfTI file, or None.
        uncertainty: The uncertainty map's NIfTI file, which need not exist, or None.
    """

    name: str
    image: Path
    mask: Path
    label: Path | None = None
    uncertainty: Path | None = None

    @property
    def map(self) -> Path | None:
        """The uncertainty map's file where there is one."""
        return self.uncertainty if self.uncertainty and self.uncertainty.is_file() else None


def draw_cases(cases: Sequence[Case], out: Path, *, all_slices: bool = False) -> int:
    """Draw ``out/NAME/slice_NNN.png`` and ``out/NAME.gif`` for every case, several at once.

    Prediction red, truth green, both yellow, on FLAIR; beside it the uncertainty, where there is one. A slice is drawn
    where either has a voxel, or the uncertainty reaches ``UNCERTAIN``; a case with none in any slice gets the middle
    one, so that every case has a picture.
    """
    import multiprocessing
    import os
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    from tqdm import tqdm

    waiting = []
    for case in cases:
        stamp = _stamp(case, all_slices)
        if not _is_drawn(case, out, stamp):
            waiting.append((case, out, stamp, all_slices))
    if not waiting:
        return 0
    # Spawned, not forked: a fork of a process whose networks have started threads may never wake.
    workers = min(MAX_DRAWERS, os.cpu_count() or 1, len(waiting))
    if workers == 1:
        done = [_draw(job) for job in waiting]
    else:
        try:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
                bar = tqdm(pool.map(_draw, waiting), total=len(waiting), desc="figures", unit="patient", disable=None)
                done = list(bar)
        except BrokenProcessPool as error:
            raise PipelineError(
                f"{out}: a process that draws was killed, mostly for want of memory. Free some and run again; what is "
                "drawn stays."
            ) from error
    faults = [fault for fault in done if fault]
    if faults:
        raise PipelineError("\n".join(faults))
    return len(waiting)


def remove_outdated(cases: Sequence[Case], out: Path) -> None:
    """Remove pictures that are of other files than these cases', and those of no case: they would pass for theirs."""
    current = {case.name: case for case in cases}
    with writing_errors(out):
        for stamp in out.glob(f"*/{STAMP}"):
            name = stamp.parent.name
            kept = name in current and any(
                _is_drawn(current[name], out, _stamp(current[name], all_slices)) for all_slices in (False, True)
            )
            if not kept:
                shutil.rmtree(stamp.parent)
                (out / f"{name}.gif").unlink(missing_ok=True)
        (out / DSC_FIGURE).unlink(missing_ok=True)


def _stamp(case: Case, all_slices: bool) -> dict[str, Any]:
    files = {"image": case.image, "mask": case.mask, "label": case.label, "uncertainty": case.map}
    try:
        hashes = {kind: sha256_file(path) for kind, path in files.items() if path}
    except OSError as error:
        raise PipelineError(f"{error.filename}: cannot be read ({error.strerror}). Restore it.") from error
    return {"drawn_by": DRAWN_BY, "all_slices": all_slices, **hashes}


def _is_drawn(case: Case, out: Path, stamp: dict[str, Any]) -> bool:
    try:
        found = json.loads((out / case.name / STAMP).read_bytes())
        pictures = found.pop("pictures")
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    here = len(list((out / case.name).glob("slice_*.png")))
    return bool(found == stamp and here == pictures and (out / f"{case.name}.gif").is_file())


def _end_with_parent() -> None:
    """End this process when the one that started it is killed: the pool's own would wait for work for ever."""
    import multiprocessing
    import os
    import threading
    from multiprocessing.connection import wait

    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _draw(job: tuple[Case, Path, dict[str, Any], bool]) -> str:
    """Draw one case; the fault where there is one: an exception of ours would lose its text between processes."""
    try:
        _draw_case(*job)
    except PipelineError as error:
        return str(error)
    return ""


def _draw_case(case: Case, out: Path, stamp: dict[str, Any], all_slices: bool) -> None:
    from pipeline.imaging.nifti import load_image, load_label, load_map, shown_in_grey
    from pipeline.pages.overlays import (
        contour_frame,
        gif_bytes,
        heat_frame,
        png_bytes,
        side_by_side,
        slices_of_interest,
    )
    from pipeline.pages.viewer import MAX_UNCERTAINTY

    image = shown_in_grey(load_image(case.image)[..., FLAIR])
    mask = load_label(case.mask)
    truth = load_label(case.label) if case.label else None
    uncertainty = load_map(case.map) if case.map else None
    depth = image.shape[2]
    unsure = None if uncertainty is None else uncertainty >= UNCERTAIN
    wanted = list(range(depth)) if all_slices else slices_of_interest(mask, truth, unsure) or [depth // 2]
    folder = out / case.name
    if folder.parent != out or case.name in ("", ".", ".."):
        raise PipelineError(f"{case.name!r}: no name for a folder of pictures. Rename the volume.")
    with writing_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    frames = []
    for z in wanted:
        caption = f"slice {z + 1}/{depth}"
        frame = contour_frame(image[..., z], mask[..., z], None if truth is None else truth[..., z], caption=caption)
        if uncertainty is not None:
            frame = side_by_side([frame, heat_frame(image[..., z], uncertainty[..., z], MAX_UNCERTAINTY)])
        write_durably(folder / f"slice_{z + 1:03d}.png", png_bytes(frame))
        frames.append(frame)
    write_durably(out / f"{case.name}.gif", gif_bytes(frames))
    write_durably(folder / STAMP, json.dumps({**stamp, "pictures": len(wanted)}).encode())
