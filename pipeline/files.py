"""Paths as they are given, and many finished files put under their names together."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.scripts.files import WRITING, sync_folder, write_durably, writing_errors


def path_list(paths: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """One path or several, as a tuple."""
    return (Path(paths),) if isinstance(paths, (str, Path)) else tuple(map(Path, paths))


def named_path(name: str | Path, folder: str, suffix: str = "") -> Path:
    """A file with this suffix, or a folder without one: as given, or by its name below ``folder``."""
    is_kind = Path.is_file if suffix else Path.is_dir
    for path in (Path(name), Path(folder, f"{name}{suffix}")):
        if is_kind(path):
            return path
    known = sorted(path.stem for path in Path(folder).glob(f"*{suffix}") if is_kind(path) and path.stem != "template")
    raise PipelineError(
        f"{name}: neither a path nor below {folder}/ (found there: {', '.join(known) or 'nothing'}). "
        "Run from the repository's root, or give a path."
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
