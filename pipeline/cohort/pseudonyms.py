"""Patient id -> pseudonym by a key kept apart; a manifest with neither ids nor names of the source's files in it."""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.cohort.names import by_preference, id_fault, parse_name
from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown
from pipeline.scripts.files import held, write_durably, writing_errors
from pipeline.scripts.manifest import SECTIONS

KEY_COLUMNS = ("patient", "pseudonym")
OTHER = "other/"
REFUSED = "the file's name is no slice's, or it cannot be read"


def check_place(key: Path, *folders: Path) -> None:
    """The key must not lie among what is handed on, or among the slices."""
    try:
        place = key.resolve()
    except (OSError, RuntimeError) as error:
        raise PipelineError(f"--pseudonymise {key}: a link that leads nowhere ({error}). Name another file.") from error
    for folder in folders:
        if place.is_relative_to(folder.resolve()):
            raise PipelineError(f"--pseudonymise {key}: lies in {folder}. Keep the key apart, in a folder of its own.")


def read_key(path: Path) -> dict[str, str]:
    """Patient id -> pseudonym, empty where there is no such file yet."""
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != KEY_COLUMNS:
                raise ValueError(f"its columns are {reader.fieldnames}")  # noqa: TRY301
            rows = [(row["patient"], row["pseudonym"]) for row in reader]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise PipelineError(
            f"{path}: no readable key ({error}); expected a CSV of {', '.join(KEY_COLUMNS)}."
        ) from error
    key = dict(rows)
    faulty = [name for row in rows for name in row if not isinstance(name, str) or id_fault(name)]
    if faulty or len(key) < len(rows) or len(set(key.values())) < len(rows):
        raise PipelineError(
            f"{path}: no key ({f'{faulty[0]!r} is no id' if faulty else 'a patient or a pseudonym stands twice'}). "
            "Restore it."
        )
    return key


def extended(key: Mapping[str, str], patients: Iterable[str]) -> dict[str, str]:
    """A key with pseudonyms for patients that it does not know; their numbers say nothing of the order of the ids."""
    new = sorted(set(patients) - set(key))
    random.SystemRandom().shuffle(new)
    result, taken, number = dict(key), {*key, *key.values(), *new}, 0
    for patient in new:
        while (pseudonym := f"P{number + 1:04d}") in taken:
            number += 1
        taken.add(pseudonym)
        result[patient] = pseudonym
    return result


def key_for(path: Path, patients: Iterable[str]) -> dict[str, str]:
    """The key with all of these patients in it, written; no other run changes it meanwhile."""
    with writing_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with held(path.parent):
        key = extended(read_key(path), patients)
        write_key(path, key)
    return key


def write_key(path: Path, key: Mapping[str, str]) -> None:
    """Write a key, for its owner's eyes alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([KEY_COLUMNS, *sorted(key.items())])
    write_durably(path, text.getvalue().encode(), mode=0o600)


def aliases(paths: Iterable[str], key: Mapping[str, str]) -> dict[str, str]:
    """Path of the source folder -> a path that tells no name.

    A slice that a manifest uses is ``PSEUDONYM/PSEUDONYM_NUMBER.tif``, whatever other files are there; further ones of
    its patient and number stand in ``copy_N``, what is no slice in ``other``, numbered.
    """
    slices = []
    for path in sorted(paths):
        try:
            file = parse_name(PurePosixPath(path))
        except PipelineError:
            file = None
        if file and file.patient in key:
            slices.append((path, file))
    result: dict[str, str] = {}
    seen: dict[str, int] = {}
    for path, file in sorted(slices, key=lambda found: by_preference(found[1])):
        name = key[file.patient]
        alias = f"{name}/{name}_{file.number}{'_mask' if file.kind == 'mask' else ''}.tif"
        seen[alias] = seen.get(alias, 0) + 1
        result[path] = alias if seen[alias] == 1 else f"copy_{seen[alias]}/{alias}"
    others = sorted(set(paths) - set(result))
    return result | {path: f"{OTHER}{number:04d}" for number, path in enumerate(others, 1)}


def pseudonymised(manifest: Mapping[str, Any], key: Mapping[str, str], paths: Mapping[str, str]) -> dict[str, Any]:
    """A manifest's content with pseudonyms for ids and aliases for paths, in an order that tells nothing either."""
    # Longest first: a path holds an id, and an id may hold another. An underscore parts an id from a number.
    names = {**key, **paths}
    longest = sorted(names, key=lambda name: (-len(name), name))
    known = re.compile(f"(?<![^\\W_])(?:{'|'.join(map(re.escape, longest))})(?![^\\W_])")

    def told(text: str) -> str:
        return known.sub(lambda found: names[found[0]], text)

    content = {**manifest, "patients": {}}
    for section in SECTIONS:
        content[section] = [
            {**item, **{part: told(item[part]) for part in ("image", "label", "patient")}} for item in manifest[section]
        ]
        content[section].sort(key=lambda item: item["patient"])
    # Of a file whose name is no slice's the reason may tell a name that is in no key.
    nameless = {path for path, alias in paths.items() if alias.startswith(OTHER)}
    for name in ("skipped", "refused"):
        entries = [
            {
                "path": paths[entry["path"]],
                "reason": REFUSED if name == "refused" and entry["path"] in nameless else told(entry["reason"]),
            }
            for entry in manifest[name]
        ]
        content[name] = sorted(entries, key=lambda entry: entry["path"])

    def message(warning: Mapping[str, Any]) -> str:
        subject = next((path for path in nameless if warning["message"].startswith(f"{shown(path)}: ")), None)
        return told(warning["message"]) if subject is None else f"{paths[subject]}: {REFUSED}"

    content["warnings"] = sorted(
        (
            {**warning, "patient": key.get(warning["patient"]), "message": message(warning)}
            for warning in manifest["warnings"]
        ),
        key=lambda warning: (warning["patient"] or "", warning["kind"], warning["message"]),
    )
    for patient in sorted(manifest["patients"], key=key.__getitem__):
        info = manifest["patients"][patient]
        content["patients"][key[patient]] = {
            **info,
            "institution": "",  # a part of the id
            "warnings": [told(text) for text in info["warnings"]],
            "sources": dict(sorted((paths[path], sha256) for path, sha256 in info["sources"].items())),
        }
    return content
