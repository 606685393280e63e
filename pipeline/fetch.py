"""Download the LGG Segmentation Dataset from Kaggle, for people who have the internet; a thin shell over kagglehub."""

from __future__ import annotations

import argparse
import inspect
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, run_cli

HANDLE = "mateuszbuda/lgg-mri-segmentation"
FOLDER = "kaggle_3m"
LICENCE = """\
LGG Segmentation Dataset, licence CC BY-NC-SA 4.0 (no commercial use; share alike). If you use it, cite
  Buda et al., Computers in Biology and Medicine 109 (2019), and
  Mazurowski et al., Journal of Neuro-Oncology 133 (2017)."""
BY_HAND = (
    f"Or download it with a browser from https://www.kaggle.com/datasets/{HANDLE}, unzip it and point "
    f"pipeline.manifest to its folder {FOLDER}."
)


def find_slices(root: Path) -> Path:
    """Find the published folder below ``root``.

    Args:
        root: what was downloaded or unzipped, or the folder ``kaggle_3m`` itself.

    Returns:
        The outermost folder ``kaggle_3m``: the archive holds a nested second copy of all slices
        (``lgg-mri-segmentation/kaggle_3m``), and using both would count every patient twice.

    Raises:
        PipelineError: no such folder, or none with a slice in it.
    """
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
    """Download the archive, or find it in kagglehub's cache.

    Args:
        dest: folder to put it in; None leaves it in kagglehub's cache.

    Returns:
        The folder that holds the unpacked archive.

    Raises:
        PipelineError: kagglehub is not installed, the download failed, or ``dest`` cannot be written.
    """
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


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: download the dataset and print the next command.

    Raises:
        PipelineError: kagglehub missing, download failed, or no slices in what came.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.fetch",
        description=(__doc__ or "").strip(),
        epilog=LICENCE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dest", type=Path, metavar="DIR", help="empty folder to put it in (default: kagglehub's cache)"
    )
    args = parser.parse_args(argv)
    print(LICENCE)
    dest: Path | None = args.dest
    if dest is not None and dest.exists() and not dest.is_dir():
        raise PipelineError(f"{dest} is a file, expected a folder. Choose another --dest.")
    folder = find_slices(download(dest))
    patients = sum(entry.is_dir() for entry in folder.iterdir())
    command = f"python -m pipeline.manifest {shlex.quote(str(folder))}"
    print(f"{patients} patients in {folder}; next: {command}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
