"""Whether a bundle is this project's own, by the hashes of its configs and scripts.

A MONAI config can run any code: MONAI builds whatever class a ``_target_`` names and evaluates whatever follows a
``$``. No program can tell a harmless config from a harmful one, so nothing of that kind is tried here. A bundle of this
project runs, with any weights. Any other bundle runs where the user says that it is trusted.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown
from pipeline.scripts.files import sha256_bytes, sha256_file

KNOWN = Path(__file__).with_name("bundles.json")
"""Bundle -> path -> SHA-256 of each config and script of this project's bundles; ``make bundles`` writes it."""
IMPORTABLE = {".py", ".pyc", ".pyd", ".so", ".dll"}
"""Endings of files that Python imports. A bundle's folder stands first on Python's path."""


def refuse_links(folder: Path) -> None:
    """Refuse a bundle that holds a link to a file or folder outside of it."""
    root = os.path.realpath(folder)
    for path in _paths(folder):
        if path.is_symlink() and not os.path.realpath(path).startswith(root + os.sep):
            raise PipelineError(
                f"{path}: a symbolic link out of the bundle (not followed). Replace it by the file itself."
            )


def code_hashes(folder: Path, read: Mapping[str, bytes] | None = None) -> dict[str, str]:
    """SHA-256 of every file of a bundle that can run code: its configs, its scripts, and what Python could import.

    Metadata, documentation and weights run nothing. What Python has compiled of the scripts is left out:
    ``clear_compiled`` removes it.
    """
    hashes = {}
    for path in _paths(folder):
        name = path.relative_to(folder).as_posix()
        in_code = name.startswith(("configs/", "scripts/")) and path.stem != "metadata"
        if not path.is_file() or "scripts/__pycache__" in name:
            continue
        if in_code or path.suffix.lower() in IMPORTABLE:
            try:
                hashes[name] = sha256_bytes(read[name]) if read and name in read else sha256_file(path)
            except OSError as error:
                raise PipelineError(f"{path}: cannot be read ({error.strerror}). Mend its permissions.") from error
    return hashes


def foreign_files(folder: Path, read: Mapping[str, bytes] | None = None) -> tuple[str, list[str]]:
    """What tells a bundle from the one of this project that it is most alike."""
    found = set(code_hashes(folder, read).items())
    known: dict[str, dict[str, str]] = json.loads(KNOWN.read_bytes())
    name = min(known, key=lambda bundle: len(set(known[bundle].items()) ^ found))
    return name, sorted({path for path, _ in set(known[name].items()) ^ found})


def refuse_foreign(folder: Path, read: Mapping[str, bytes] | None = None) -> None:
    """Refuse a bundle that is not, in all that can run code, one of this project's."""
    name, files = foreign_files(folder, read)
    if not files:
        return
    present = [file for file in files if (folder / file).is_file()]
    alike = len(present) < len(code_hashes(folder, read))
    first = ", ".join(shown(file) for file in files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
    what = f"differs from this project's {name} in {first}" if alike else "is none of this project's bundles"
    raise PipelineError(
        f"{folder}: {what}. A config can run any code on this machine: read configs/ and scripts/, and pass --trust if "
        "you trust where the bundle comes from."
    )


def clear_compiled(folder: Path) -> None:
    """Remove what Python has compiled of a bundle's scripts, so that it is made anew from the text that was hashed."""
    if not (folder / "scripts").is_symlink():
        shutil.rmtree(folder / "scripts" / "__pycache__", ignore_errors=True)


def _paths(folder: Path) -> list[Path]:
    """All files and folders below a bundle, sorted; links are listed and not followed."""

    def fail(error: OSError) -> None:
        raise PipelineError(f"{error.filename}: cannot be listed ({error.strerror}). Mend its permissions.") from error

    walk = os.walk(folder, onerror=fail)
    return sorted(Path(parent) / name for parent, folders, files in walk for name in (*folders, *files))
