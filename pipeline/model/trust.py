"""Whether a bundle is this project's own, by the hashes of its configs and scripts.

A MONAI config can run any code: MONAI builds whatever class a ``_target_`` names and evaluates whatever follows a
``$``. No program can tell a harmless config from a harmful one, so nothing of that kind is tried here. A bundle of this
project runs, with any weights. Any other bundle runs where the user says that it is trusted.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import OWN
from pipeline.scripts.faults import shown
from pipeline.scripts.files import sha256_bytes, sha256_file

KNOWN = Path(__file__).with_name("bundles.json")
"""Bundle -> path -> SHA-256 of each config and script of this project's bundles; ``make bundles`` writes it."""
IMPORTABLE = (*importlib.machinery.all_suffixes(), ".pyw", ".pyd", ".dll")
"""Endings of files that Python imports. MONAI's own command puts a bundle's folder first on Python's path."""
COMPILED = "scripts/__pycache__/"


def refuse_links(folder: Path) -> None:
    """Refuse a bundle that holds a link to a folder, or a link to a file outside of it."""
    root = os.path.realpath(folder)
    for path in _paths(folder):
        inside = os.path.realpath(path).startswith(root + os.sep)
        if path.is_symlink() and (path.is_dir() or not inside):
            what = "to a folder" if inside else "out of the bundle"
            raise PipelineError(f"{path}: a symbolic link {what} (not followed). Replace it by what it leads to.")


def code_hashes(folder: Path, read: Mapping[str, bytes] | None = None) -> dict[str, str]:
    """Path below a bundle -> SHA-256, of every file that can run code: configs, scripts, what Python could import.

    Metadata, documentation and weights run nothing. What Python has compiled of the scripts is left out: a prediction
    does not import it, and ``clear_compiled`` removes it before a training. ``read`` is path below the bundle ->
    content, for files that were read already and will be used as read.
    """
    hashes = {}
    for path in _paths(folder):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.startswith(COMPILED):
            continue
        in_code = name.startswith(("configs/", "scripts/")) and path.stem != "metadata"
        if in_code or name.lower().endswith(IMPORTABLE):
            try:
                hashes[name] = sha256_bytes(read[name]) if read and name in read else sha256_file(path)
            except OSError as error:
                raise PipelineError(f"{path}: cannot be read ({error.strerror}). Mend its permissions.") from error
    return hashes


def refuse_foreign(folder: Path, read: Mapping[str, bytes] | None = None) -> None:
    """Refuse a bundle whose code, as ``code_hashes`` finds it, is not that of one of this project's bundles."""
    found = code_hashes(folder, read).items()
    known: dict[str, dict[str, str]] = json.loads(KNOWN.read_bytes())
    name = min(known, key=lambda bundle: len(known[bundle].items() ^ found))
    own = known[name].items()
    files = sorted({path for path, _ in own ^ found})
    if not files:
        return
    first = ", ".join(map(shown, files[:5])) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
    what = f"differs from this project's {name} in {first}" if own & found else "is none of this project's bundles"
    raise PipelineError(
        f"{folder}: {what}. A config can run any code on this machine: read configs/ and scripts/, and pass --trust if "
        "you trust where the bundle comes from."
    )


def clear_compiled(folder: Path) -> None:
    """Remove what Python has compiled of a bundle's scripts, so that it is made anew from the text that was hashed.

    An installed package may be read-only, and holds what its installation compiled: who could change that could change
    the package itself.
    """
    compiled = folder / COMPILED
    shutil.rmtree(compiled, ignore_errors=True)
    if compiled.exists() and not folder.resolve().is_relative_to(OWN.resolve()):
        raise PipelineError(f"{compiled}: cannot be removed. Remove it: Python would run it in place of the scripts.")


def _paths(folder: Path) -> list[Path]:
    """All files and folders below a bundle, sorted; links are listed and not followed."""

    def fail(error: OSError) -> None:  # what stands in the folder could be opened by name all the same
        raise PipelineError(f"{error.filename}: cannot be listed ({error.strerror}). Mend its permissions.") from error

    walk = os.walk(folder, onerror=fail)
    return sorted(Path(parent) / name for parent, folders, files in walk for name in (*folders, *files))
