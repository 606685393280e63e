"""Find bundles and YAML files by name, and put finished files in place, all or none."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.scripts.files import WRITING, sync_folder, write_durably, writing_errors
from pipeline.scripts.manifest import MASK_SUFFIX, PROBABILITY_SUFFIX, UNCERTAINTY_SUFFIX

PACKAGE = Path(__file__).parent
OWN = PACKAGE if (PACKAGE / "bundles").is_dir() else PACKAGE.parent
"""The folder that holds ``bundles/``, ``experiments/`` and ``recipes/``: the installed package or a checkout's root."""
FINISHED = ".finished"
"""The folder inside an output folder that keeps the results of single volumes, so that a stopped run can continue."""
BUILT_MARK = ".built_volumes"
"""A file in the folder of a prediction whose ``volumes/`` was built from other files."""
FIGURES = "figures"
"""The folder of pictures, below any folder of results."""
MASK_FOLDER, MAP_FOLDER = "masks", "uncertainty"
"""Folders for predicted masks and uncertainty maps, below the folder of an evaluation."""
SUMMARY_NAME = "summary.json"
"""The summary of an evaluation, in its folder."""
SEGMENTATION_SUFFIX = "_seg.dcm"
RESULT_SUFFIXES = (MASK_SUFFIX, PROBABILITY_SUFFIX, UNCERTAINTY_SUFFIX, SEGMENTATION_SUFFIX)
"""Ends of the names of all files that a prediction may write for a volume."""


def path_list(paths: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """One path or several paths, as a tuple of ``Path``."""
    return (Path(paths),) if isinstance(paths, (str, Path)) else tuple(map(Path, paths))


def named_path(name: str | Path, folder: str, suffix: str = "") -> Path:
    """The path of a bundle, a recipe or an experiment that is given by its path or by its name.

    A name is looked up below ``folder``, first in the working folder, then in the package. A folder of the same name
    that is no bundle, such as a folder of results, is ignored.

    Args:
        name: The path or the name, such as ``basic_unet``.
        folder: The folder that holds the named ones: ``bundles``, ``recipes`` or ``experiments``.
        suffix: The suffix of the files, such as ``.yaml``; empty to look for folders.

    Raises:
        PipelineError: Nothing has this path or name; the message lists the known names.
    """
    is_kind = Path.is_file if suffix else Path.is_dir
    named = f"{name}{suffix}"
    places = (Path(name), Path(folder, named), OWN / folder / named) if str(name) else ()  # an empty name is no place
    found = [path for path in places if is_kind(path)]
    if found:
        return next((path for path in found if suffix or (path / "configs").is_dir()), found[0])
    there = [path for place in (Path(folder), OWN / folder) for path in place.glob(f"*{suffix}") if is_kind(path)]
    known = sorted({path.stem for path in there} - {"template"})
    raise PipelineError(
        f"{name or repr('')}: neither a path nor one of the {folder} (known: {', '.join(known)}). Give one of them."
    )


def holds_files(folder: Path) -> bool:
    """Whether a folder exists and is not empty."""
    return folder.is_dir() and any(folder.iterdir())


def replace_all(staged: Mapping[Path, Path], aside: Path) -> None:
    """Move finished files to their final names: all of them, or none if the disk refuses one.

    Args:
        staged: The final path of each finished file. Both are on the same disk.
        aside: A folder that keeps the replaced files meanwhile. It is removed at the end.

    Raises:
        PipelineError: The disk refused a file; all files are as they were before.
    """
    done: list[tuple[Path, Path | None]] = []
    try:
        for number, (source, target) in enumerate(staged.items()):
            with writing_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                before = aside / str(number) if target.exists() else None
                if before:
                    link_or_copy(target, before)
                done.append((target, before))
                source.replace(target)
    except BaseException:
        for target, before in reversed(done):
            with contextlib.suppress(OSError):
                if before:
                    before.replace(target)
                else:
                    target.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for folder in {target.parent for target in staged.values()}:
        sync_folder(folder)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name: by a hard link if the disk has links, else by a copy.

    A link is safe because this project replaces files and never changes them in place.

    Raises:
        PipelineError: The disk refused the new name.
    """
    with writing_errors(target):
        if target.exists() and target.samefile(source):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f"{WRITING}{target.name}.tmp")
        beside.unlink(missing_ok=True)
        try:
            os.link(os.path.realpath(source), beside)  # of a link itself, the new name could lead nowhere
        except OSError:  # The target is on another disk, or the disk has no links.
            write_durably(target, source.read_bytes())
        else:
            beside.replace(target)
