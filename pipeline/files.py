"""Paths as they are given, and many finished files put under their names together."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.scripts.files import WRITING, sync_folder, write_durably, writing_errors

PACKAGE = Path(__file__).parent
OWN = PACKAGE if (PACKAGE / "bundles").is_dir() else PACKAGE.parent
"""Folder of ``bundles/``, ``experiments/`` and ``recipes/``: installed, the package; in a checkout, its root."""
FINISHED = ".finished"
"""Folder of the results of single volumes, in a folder of results."""


def path_list(paths: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """One path or several, as a tuple."""
    return (Path(paths),) if isinstance(paths, (str, Path)) else tuple(map(Path, paths))


def named_path(name: str | Path, folder: str, suffix: str = "") -> Path:
    """A file with this suffix, or a folder without one: as given, or by its name.

    A name is looked up below ``folder`` in the working folder, then in what the package brings. A folder of that name
    that is no bundle, such as one of results, does not stand in the way.
    """
    is_kind = Path.is_file if suffix else Path.is_dir
    named = f"{name}{suffix}"
    found = [path for path in (Path(name), Path(folder, named), OWN / folder / named) if is_kind(path)]
    if found:
        return next((path for path in found if suffix or (path / "configs").is_dir()), found[0])
    there = [path for place in (Path(folder), OWN / folder) for path in place.glob(f"*{suffix}") if is_kind(path)]
    known = sorted({path.stem for path in there} - {"template"})
    raise PipelineError(
        f"{name}: neither a path nor one of the {folder} (known: {', '.join(known)}). Give one of them."
    )


def replace_all(staged: Mapping[Path, Path], aside: Path) -> None:
    """Put finished files under their names: all of them, or none where the disk refuses in between.

    ``staged`` is finished file -> its name on the same disk. ``aside`` is a folder for what they replace meanwhile.
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
    """Put a file under a second name, by a link where the disk can: the files here are replaced, never changed."""
    with writing_errors(target):
        if target.exists() and target.samefile(source):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f"{WRITING}{target.name}.tmp")
        beside.unlink(missing_ok=True)
        try:
            os.link(source, beside)
        except OSError:  # another disk, or one without links
            write_durably(target, source.read_bytes())
        else:
            beside.replace(target)
