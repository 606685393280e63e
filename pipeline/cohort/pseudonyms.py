"""Replace patient ids by pseudonyms from a separate key, in a manifest without ids and names of source files."""

from __future__ import annotations

import csv
import itertools
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.cohort.names import id_fault
from pipeline.cohort.patients import volume_names
from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown
from pipeline.scripts.files import held, write_durably, writing_errors
from pipeline.scripts.manifest import SECTIONS, VOLUMES

KEY_COLUMNS = ("patient", "pseudonym")
OTHER = "other/"
REFUSED = "the file's name is not that of a slice, or the file cannot be read"


def check_place(key: Path, *places: Path) -> None:
    """Refuse a key that lies in one of these folders, or beside one of these files.

    The key must not lie in the folder that is shared, nor among the slices.

    Args:
        key: Path of the CSV with the pseudonyms.
        places: The source, and the folder of the manifest.

    Raises:
        PipelineError: The key lies in one of the folders, or beside one of the files.
    """
    own = Path(os.path.realpath(key))
    for place in (Path(os.path.realpath(place)) for place in places):
        folder = place.parent if place.is_file() else place
        if own.parent == folder or (folder == place and own.is_relative_to(folder)):
            raise PipelineError(f"--pseudonymise {key}: lies in {folder}. Keep the key in a separate folder.")


def read_key(path: Path) -> dict[str, str]:
    """The pseudonym of each patient id in a key; empty if the file does not exist yet.

    Args:
        path: Path of the CSV, with the columns ``patient`` and ``pseudonym``.

    Raises:
        PipelineError: The file is not a valid key.
    """
    wanted = ", ".join(KEY_COLUMNS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns, *rows = [*filter(None, csv.reader(file))] or [[]]
        key = dict(rows)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error) as error:
        raise PipelineError(
            f"{path}: no readable key ({shown(error)}; expected a CSV of {wanted}). Restore it."
        ) from error
    faulty = any(id_fault(name) for row in rows for name in row)
    if tuple(columns) != KEY_COLUMNS or faulty or not len(rows) == len(key) == len(set(key.values())):
        raise PipelineError(f"{path}: not a key (expected the columns {wanted}, valid ids, none twice). Restore it.")
    return key


def key_for(path: Path, patients: Iterable[str]) -> dict[str, str]:
    """The pseudonym of each patient id, after new patients are added to the key.

    Only the owner may read the file. New pseudonyms are in random order, so that they do not reveal the order of ids.

    Args:
        path: Path of the CSV, which is written.
        patients: Ids of the patients that need a pseudonym.

    Raises:
        PipelineError: The file is not a valid key, or cannot be written.
    """
    path = Path(os.path.realpath(path))  # a link to a key stays a link
    with writing_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with held(path.parent):  # meanwhile, no other run can change the key
        key = read_key(path)
        new = list(set(patients) - set(key))
        random.SystemRandom().shuffle(new)
        taken = {*key, *key.values(), *new}
        free = (name for name in map("P{:04d}".format, itertools.count(1)) if name not in taken)
        key |= zip(new, free, strict=False)
        rows = [KEY_COLUMNS, *sorted(key.items())]
        write_durably(path, "".join(f"{patient},{pseudonym}\n" for patient, pseudonym in rows).encode(), mode=0o600)
    return key


def aliases(paths: Iterable[str], owners: Mapping[str, tuple[str, str]], key: Mapping[str, str]) -> dict[str, str]:
    """A path without names, for every path in the source folder.

    A slice becomes ``PSEUDONYM/PSEUDONYM_NUMBER.tif``, and a volume ``PSEUDONYM/PSEUDONYM_flair.nii.gz``. Copies are
    put into ``copy_N``. Files that belong to no patient are put into ``other``.

    Args:
        paths: All paths in the source folder.
        owners: Patient id and the file's role as the end of a name, such as ``_3_mask.tif``, by path.
        key: Pseudonym by patient id.
    """
    known = [path for path in paths if path in owners and owners[path][0] in key]
    result: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for path in sorted(known, key=lambda path: (len(PurePosixPath(path).parts), path)):
        patient, ending = owners[path]
        alias = f"{key[patient]}/{key[patient]}{ending}"
        seen[alias] += 1
        result[path] = alias if seen[alias] == 1 else f"copy_{seen[alias]}/{alias}"
    others = sorted(set(paths) - set(result))
    return result | {path: f"{OTHER}{number:04d}" for number, path in enumerate(others, 1)}


def pseudonymised(manifest: Mapping[str, Any], key: Mapping[str, str], paths: Mapping[str, str]) -> dict[str, Any]:
    """The content of a manifest with pseudonyms in place of ids, and in an order that reveals no ids.

    Args:
        manifest: The content of ``manifest.json``.
        key: Pseudonym by patient id.
        paths: The path without names that replaces each path in the source folder, as ``aliases`` gives it.
    """
    # The longest name comes first, because a path holds an id, and an id may hold another. "_" separates id and number.
    names = {**key, **paths}
    longest = sorted(names, key=len, reverse=True)
    known = re.compile(f"(?<![^\\W_])(?:{'|'.join(map(re.escape, longest))})(?![^\\W_])")
    # If a file's name is not that of a slice, the reason may hold a name that is not in the key.
    nameless = {path for path, alias in paths.items() if alias.startswith(OTHER)}

    def without_names(text: str) -> str:
        return known.sub(lambda found: names[found[0]], text)

    def message(text: str) -> str:
        subject = next((path for path in nameless if text.startswith(f"{shown(path)}: ")), None)
        return f"{paths[subject]}: {REFUSED}" if subject else without_names(text)

    content = {**manifest, "patients": {}}
    for section in SECTIONS:
        items = []
        for item in manifest[section]:
            name = key[item["patient"]]
            image, label = (f"{VOLUMES}/{file}" for file in volume_names(name))
            items.append({**item, "image": image, "label": label, "patient": name})
        content[section] = sorted(items, key=lambda item: item["patient"])
    for name, hidden in (("skipped", set()), ("refused", nameless)):
        entries = [
            {
                "path": paths[entry["path"]],
                "reason": REFUSED if entry["path"] in hidden else without_names(entry["reason"]),
            }
            for entry in manifest[name]
        ]
        content[name] = sorted(entries, key=lambda entry: entry["path"])
    warnings = [
        {**warning, "patient": key.get(warning["patient"]), "message": message(warning["message"])}
        for warning in manifest["warnings"]
    ]
    content["warnings"] = sorted(warnings, key=lambda entry: (entry["patient"] or "", entry["kind"], entry["message"]))
    for patient, info in sorted(manifest["patients"].items(), key=lambda entry: key[entry[0]]):
        content["patients"][key[patient]] = {
            **info,
            "institution": "",  # a part of the id
            "warnings": [without_names(text) for text in info["warnings"]],
            "sources": dict(sorted((paths[path], sha256) for path, sha256 in info["sources"].items())),
        }
    return content
