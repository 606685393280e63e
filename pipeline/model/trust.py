"""Decide whether a bundle is this project's own, by the hashes of its configs and scripts.

A MONAI config can run any code: MONAI builds every class that a ``_target_`` names, and evaluates all text after a
``$``. No program can reliably distinguish a harmless config from a harmful one, so this module does not try. A bundle
of this project runs, with any weights. Another bundle runs only if the user says that it is trusted.
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
"""The file of known hashes: bundle -> path -> SHA-256 of each config and script. ``make bundles`` writes it."""
IMPORTABLE = (*importlib.machinery.all_suffixes(), ".pyw", ".pyd", ".dll")
"""Endings of files that Python can import. MONAI's own command puts a bundle's folder first on Python's path."""
COMPILED = "scripts/__pycache__/"


def refuse_links(folder: Path) -> None:
    """Refuse a bundle that holds a link to a folder, or to a file outside the bundle."""
    root = os.path.realpath(folder)
    for path in _paths(folder):
        inside = os.path.realpath(path).startswith(root + os.sep)
        if path.is_symlink() and (path.is_dir() or not inside):
            what = "to a folder" if inside else "out of the bundle"
            raise PipelineError(f"{path}: a symbolic link {what} (expected files). Replace it by a copy of its target.")


def code_hashes(folder: Path, read: Mapping[str, bytes] | None = None) -> dict[str, str]:
    """The hashes of all files in a bundle that can run code: path below the bundle -> SHA-256.

    These are the configs, the scripts, and every file that Python could import. Metadata, documentation and weights run
    no code. Compiled scripts are left out: predictions do not import them, and ``clear_compiled`` removes them before a
    training.

    Args:
        folder: The bundle's folder.
        read: Path below the bundle -> content, for files that are read already and will be used as read.
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
                raise PipelineError(f"{path}: cannot be read ({error.strerror}). Correct its permissions.") from error
    return hashes


def refuse_foreign(folder: Path, read: Mapping[str, bytes] | None = None) -> None:
    """Refuse a bundle whose code differs from that of every bundle of this project.

    Args:
        folder: The bundle's folder.
        read: Path below the bundle -> content, for files that are read already and will be used as read.

    Raises:
        PipelineError: The hashes of the bundle's code are not known.
    """
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
        f"{folder}: {what}. A config can run any code on this machine. Read configs/ and scripts/, and pass --trust if "
        "you trust the source of the bundle."
    )


def clear_compiled(folder: Path) -> None:
    """Remove the compiled scripts of a bundle, so that Python compiles the text that was hashed.

    An installed package may be read-only, so its compiled files may stay. Whoever could change them could also change
    the package.
    """
    compiled = folder / COMPILED
    shutil.rmtree(compiled, ignore_errors=True)
    if compiled.exists() and not folder.resolve().is_relative_to(OWN.resolve()):
        raise PipelineError(f"{compiled}: cannot be removed, and Python would run it. Remove it by hand.")


def _paths(folder: Path) -> list[Path]:
    """All files and folders below a bundle, sorted; links are listed and not followed."""

    def fail(error: OSError) -> None:  # Files in a folder that cannot be listed can still be opened by name.
        raise PipelineError(
            f"{error.filename}: cannot be listed ({error.strerror}). Correct its permissions."
        ) from error

    walk = os.walk(folder, onerror=fail)
    return sorted(Path(parent) / name for parent, folders, files in walk for name in (*folders, *files))
