"""Download the LGG Segmentation Dataset from Kaggle with kagglehub."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.scripts.files import writing_errors

HANDLE = "mateuszbuda/lgg-mri-segmentation"
FOLDER = "kaggle_3m"
BY_HAND = (
    f"Or download it with a browser from https://www.kaggle.com/datasets/{HANDLE}, unzip it and pass its folder "
    f"{FOLDER} to lgg-flair manifest."
)


def find_slices(root: Path) -> Path:
    """The folder of slices, ``kaggle_3m``: ``root`` itself or the uppermost such folder below it.

    Raises:
        PipelineError: There is no such folder with slices.
    """
    below = sorted(root.rglob(FOLDER), key=lambda path: (len(path.parts), str(path)))
    for folder in [root, *below] if root.name == FOLDER else below:
        if any(folder.glob("*/*.tif")):
            return folder
    raise PipelineError(
        f"{root}: no folder {FOLDER} with slices (expected {FOLDER}/PATIENT/PATIENT_1.tif). "
        f"Remove {root} and download again. {BY_HAND}"
    )


def download(dest: Path | None) -> Path:
    """Download the dataset, and return the folder of its slices.

    Args:
        dest: Folder to download into; None for kagglehub's cache.

    Raises:
        PipelineError: kagglehub is not installed, the download fails, or a file cannot be written.
    """
    try:
        import kagglehub
    except ImportError as error:
        raise PipelineError(f"kagglehub cannot be imported ({error}). Run: pip install kagglehub. {BY_HAND}") from error
    arguments: dict[str, Any] = {}
    # Older versions (0.3, 0.4.0) have no output_dir and always download to their cache.
    if dest is not None and "output_dir" in inspect.signature(kagglehub.dataset_download).parameters:
        arguments["output_dir"] = str(dest)
    try:
        root = Path(kagglehub.dataset_download(HANDLE, **arguments))
    except Exception as error:  # kagglehub raises errors of requests, zipfile, the system and its own
        cause = " ".join(str(error).split()) or "no message"
        raise PipelineError(
            f"{HANDLE}: the download failed ({type(error).__name__}: {cause}). Check the network, the space on disk, "
            f"that --dest is empty, and your Kaggle credentials (~/.kaggle). {BY_HAND}"
        ) from error
    slices = find_slices(root)
    if dest is None or root.resolve() == dest.resolve():
        return slices
    # The files lie elsewhere, although output_dir was passed, because old versions and Colab ignore it.
    target, partial = dest / FOLDER, dest / f".{FOLDER}.partial"
    if not target.exists():  # an existing folder is complete, because it is renamed when finished
        with writing_errors(target):
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(slices, partial)
            partial.rename(target)
    return target
