"""The LGG Segmentation Dataset, downloaded from Kaggle by kagglehub."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError

HANDLE = "mateuszbuda/lgg-mri-segmentation"
FOLDER = "kaggle_3m"
BY_HAND = (
    f"Or download it with a browser from https://www.kaggle.com/datasets/{HANDLE}, unzip it and point "
    f"pipeline.manifest to its folder {FOLDER}."
)


def find_slices(root: Path) -> Path:
    """Find the published folder below ``root``."""
    named = [root] if root.name == FOLDER else []
    found = named + sorted(root.rglob(FOLDER), key=lambda path: (len(path.parts), str(path)))
    for folder in found:
        if next(folder.glob("*/*.tif"), None) is not None:
            return folder
    raise PipelineError(
        f"{root}: found no folder {FOLDER} with slices, expected {FOLDER}/PATIENT/PATIENT_1.tif. "
        f"Remove {root} and fetch again. {BY_HAND}"
    )


def download(dest: Path | None) -> Path:
    """Download the archive, or find it in kagglehub's cache."""
    try:
        import kagglehub
    except ImportError as error:
        raise PipelineError(f"kagglehub cannot be imported ({error}). Run: pip install kagglehub. {BY_HAND}") from error
    arguments: dict[str, Any] = {}
    # Older versions (0.3, 0.4.0) know no output_dir and always download to their cache.
    if dest is not None and "output_dir" in inspect.signature(kagglehub.dataset_download).parameters:
        arguments["output_dir"] = str(dest)
    try:
        root = Path(kagglehub.dataset_download(HANDLE, **arguments))
    except Exception as error:  # kagglehub lets requests, zipfile, OS and its own errors through
        cause = " ".join(str(error).split()) or "no message"
        raise PipelineError(
            f"{HANDLE}: the download failed ({type(error).__name__}: {cause}). Check the network, the space on disk, "
            f"that --dest is empty, and your Kaggle credentials (~/.kaggle). {BY_HAND}"
        ) from error
    if dest is None or root.resolve() == dest.resolve():
        return root  # elsewhere even though output_dir was passed: Colab ignores it
    return _copy(find_slices(root), dest)


def _copy(folder: Path, dest: Path) -> Path:
    """Copy the slices to ``dest/kaggle_3m``, by way of a temporary name, so that a kill leaves no half dataset."""
    target, partial = dest / FOLDER, dest / f".{FOLDER}.partial"
    if target.exists():  # complete, because it was renamed into place
        return dest
    try:
        dest.mkdir(parents=True, exist_ok=True)
        if partial.exists():
            shutil.rmtree(partial)
        shutil.copytree(folder, partial)
        partial.rename(target)
    except OSError as error:
        raise PipelineError(
            f"{target}: cannot copy the slices there: {error}. Choose another --dest, or point pipeline.manifest to "
            f"{folder}."
        ) from error
    return dest
