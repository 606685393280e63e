"""Pictures of predicted volumes as files: a PNG a slice, a GIF a patient. What is drawn already is not drawn again."""

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
from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.imaging.nifti import load_image, load_label, load_map, shown_in_grey
from pipeline.pages.overlays import contour_frame, gif_bytes, heat_frame, picture_bytes
from pipeline.scripts.files import sha256_file, write_durably, writing_errors
from pipeline.scripts.manifest import FLAIR

DSC_FIGURE = "dsc.png"
STAMP = ".drawn.json"
"""In each patient's folder, written last: what it was drawn from."""
DRAWN_BY = 3
"""Goes up when the pictures change."""
UNCERTAIN = 0.1
"""Deviation of probabilities from which a slice is drawn though no mask touches it."""
MAX_DRAWERS = 4
"""Most processes that draw at once."""
GAP = 4
"""Pixels between a slice and its uncertainty."""


@dataclass(frozen=True)
class Case:
    """NIfTI files of a volume and of what was found in it; the uncertainty's need not exist."""

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
    one. The number is that of the cases drawn; the others had their pictures already.
    """
    stamps = [{"all_slices": all_slices, "sources": _sources(case)} for case in cases]
    known = zip(cases, stamps, strict=True)
    waiting = [(case, out, stamp) for case, stamp in known if _read_stamp(out, case.name) != stamp]
    workers = min(MAX_DRAWERS, os.cpu_count() or 1, len(waiting))
    if workers <= 1:
        faults = [_draw(job) for job in waiting]
    else:
        # Spawned, not forked: a fork of a process whose networks have started threads may never wake.
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
                drawn = pool.map(_draw, waiting)
                faults = list(tqdm(drawn, total=len(waiting), desc="figures", unit="patient", disable=None))
        except BrokenProcessPool as error:
            raise PipelineError(
                f"{out}: a process that draws was killed, mostly for want of memory. Free some and run again; what is "
                "drawn stays."
            ) from error
    if any(faults):
        raise PipelineError("\n".join(filter(None, faults)))
    return len(waiting)


def remove_outdated(cases: Sequence[Case], out: Path) -> None:
    """Remove pictures that are of other files than these cases', and those of no case: they would pass for theirs."""
    current = {case.name: case for case in cases}
    with writing_errors(out):
        for stamp in out.glob(f"*/{STAMP}"):
            name = stamp.parent.name
            if name not in current or _read_stamp(out, name).get("sources") != _sources(current[name]):
                shutil.rmtree(stamp.parent)
                (out / f"{name}.gif").unlink(missing_ok=True)
        (out / DSC_FIGURE).unlink(missing_ok=True)


def _sources(case: Case) -> dict[str, Any]:
    """All that the pictures of a case depend on."""
    files = {"image": case.image, "mask": case.mask, "label": case.label, "uncertainty": case.map}
    try:
        return {"drawn_by": DRAWN_BY, **{kind: sha256_file(path) for kind, path in files.items() if path}}
    except OSError as error:
        raise PipelineError(f"{error.filename}: cannot be read ({error.strerror}). Restore it.") from error


def _read_stamp(out: Path, name: str) -> dict[str, Any]:
    """What the pictures of a case were drawn from, empty where one of them is missing."""
    try:
        stamp: dict[str, Any] = json.loads((out / name / STAMP).read_bytes())
        drawn = stamp.pop("pictures")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    is_whole = len(list((out / name).glob("slice_*.png"))) == drawn and (out / f"{name}.gif").is_file()
    return stamp if is_whole else {}


def _end_with_parent() -> None:
    """End this process when the one that started it is killed: the pool's own would wait for work for ever."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _draw(job: tuple[Case, Path, dict[str, Any]]) -> str:
    """Draw one case; its fault as text, so that those of all cases are told together."""
    try:
        _draw_case(*job)
    except PipelineError as error:
        return str(error)
    return ""


def _draw_case(case: Case, out: Path, stamp: dict[str, Any]) -> None:
    image = shown_in_grey(load_image(case.image)[..., FLAIR])
    mask = load_label(case.mask)
    truth = load_label(case.label) if case.label else None
    uncertainty = load_map(case.map) if case.map else None
    depth = image.shape[2]
    unsure = None if uncertainty is None else uncertainty >= UNCERTAIN
    marked = np.any([volume.any(axis=(0, 1)) for volume in (mask, truth, unsure) if volume is not None], axis=0)
    wanted = range(depth) if stamp["all_slices"] else np.flatnonzero(marked).tolist() or [depth // 2]
    folder = out / case.name
    with writing_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    frames = []
    for z in wanted:
        caption = f"slice {z + 1}/{depth}"
        frame = contour_frame(image[..., z], mask[..., z], None if truth is None else truth[..., z], caption=caption)
        if uncertainty is not None:
            spaced = np.pad(frame, ((0, 0), (0, GAP), (0, 0)))
            frame = np.hstack([spaced, heat_frame(image[..., z], uncertainty[..., z])])
        write_durably(folder / f"slice_{z + 1:03d}.png", picture_bytes(frame, "png", compress_level=4))
        frames.append(frame)
    write_durably(out / f"{case.name}.gif", gif_bytes(frames))
    write_durably(folder / STAMP, json.dumps({**stamp, "pictures": len(wanted)}).encode())
