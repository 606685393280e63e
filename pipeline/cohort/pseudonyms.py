"""Patient id -> pseudonym by a key kept apart; a manifest with neither ids nor names of the source's files in it."""

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
from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown
from pipeline.scripts.files import held, write_durably, writing_errors
from pipeline.scripts.manifest import SECTIONS

KEY_COLUMNS = ("patient", "pseudonym")
OTHER = "other/"
REFUSED = "the file's name is no slice's, or it cannot be read"


def check_place(key: Path, *folders: Path) -> None:
    """The key must not lie among what is handed on, or among the slices."""
    for folder in folders:
        if Path(os.path.realpath(key)).is_relative_to(os.path.realpath(folder)):
            raise PipelineError(f"--pseudonymise {key}: lies in {folder}. Keep the key apart, in a folder of its own.")


def read_key(path: Path) -> dict[str, str]:
    """Patient id -> pseudonym, empty where there is no such file yet."""
    wanted = ", ".join(KEY_COLUMNS)
    try:
        with path.open(encoding="utf-8", newline="") as file:
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
        raise PipelineError(f"{path}: no key (expected the columns {wanted}, valid ids, none twice). Restore it.")
    return key


def key_for(path: Path, patients: Iterable[str]) -> dict[str, str]:
    """The key with all of these patients in it, written for its owner's eyes alone; new pseudonyms tell no order."""
    with writing_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with held(path.parent):  # no other run changes the key meanwhile
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
    """Path of the source folder -> a path that tells no name.

    A slice is ``PSEUDONYM/PSEUDONYM_NUMBER.tif``, a volume ``PSEUDONYM/PSEUDONYM_flair.nii.gz``. Copies stand in
    ``copy_N``, what is no patient's in ``other``. ``owners`` is path -> patient and what the file is to the patient.
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
    """A manifest's content with pseudonyms for ids and aliases for paths, in an order that tells nothing either."""
    # Longest first: a path holds an id, and an id may hold another. An underscore parts an id from a number.
    names = {**key, **paths}
    longest = sorted(names, key=len, reverse=True)
    known = re.compile(f"(?<![^\\W_])(?:{'|'.join(map(re.escape, longest))})(?![^\\W_])")
    # Of a file whose name is no slice's the reason may tell a name that is in no key.
    nameless = {path for path, alias in paths.items() if alias.startswith(OTHER)}

    def told(text: str) -> str:
        return known.sub(lambda found: names[found[0]], text)

    def message(text: str) -> str:
        subject = next((path for path in nameless if text.startswith(f"{shown(path)}: ")), None)
        return f"{paths[subject]}: {REFUSED}" if subject else told(text)

    content = {**manifest, "patients": {}}
    for section in SECTIONS:
        parts = ("image", "label", "patient")
        items = [item | {part: told(item[part]) for part in parts} for item in manifest[section]]
        content[section] = sorted(items, key=lambda item: item["patient"])
    for name, hidden in (("skipped", set()), ("refused", nameless)):
        entries = [
            {"path": paths[entry["path"]], "reason": REFUSED if entry["path"] in hidden else told(entry["reason"])}
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
            "warnings": [told(text) for text in info["warnings"]],
            "sources": dict(sorted((paths[path], sha256) for path, sha256 in info["sources"].items())),
        }
    return content
