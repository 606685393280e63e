"""A bundle from elsewhere, read as text: what its configs would run, before anything of it runs.

MONAI instantiates any ``_target_`` and evaluates any ``$`` of a config that it is given, by design. So configs that are
not this project's own, by their hash, are held against a list of what a plain bundle needs: components of MONAI, torch
and ignite, and expressions of a small grammar. Whatever else stands there is named with its file and line. This is a
list of what is known to be harmless, not of what is known to be harmful. A bundle's own code (``scripts/``) cannot be
judged so. ``pipeline.components`` and ``pipeline.grammar`` hold the lists; this module knows files and folders.
"""

from __future__ import annotations

import ast
import configparser
import hashlib
import json
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.components import part_for_prediction, value_faults
from pipeline.errors import PipelineError
from pipeline.scripts.faults import shown

KNOWN = Path(__file__).with_name("bundles.json")
"""SHA-256 of configs and scripts of this project's bundles; ``pipeline.template`` writes it."""

MAX_UNPACKED_BYTES = 4 * 2**30
"""Of a bundle's zip; weights of the model zoo take less."""

SHAPE = re.compile(r"(?:[0-9np+\-/() ]|\*(?!\*)|(?<![0-9])2\*\*(?:p|[0-9]{1,2})(?![0-9]|\*\*))+")
MOST_BYTES = 2**20
"""Of a config: more than any plain bundle has, and a bound on reading."""
LOG_HANDLERS = {"StreamHandler", "logging.StreamHandler", "FileHandler", "logging.FileHandler"}
CODE = {".py", ".pyc", ".pyd", ".so", ".dll", ".sh", ".ts", ".pth", ".pkl", ".pickle", ".joblib", ".whl", ".egg"}


@dataclass(frozen=True)
class Fault:
    """Something a plain bundle has no use for.

    Args:
        file: path below the bundle.
        line: in the file, 0 for the file as a whole.
        reason: what stands there, and why it is not taken.
    """

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}{f':{self.line}' if self.line else ''}: {self.reason}"


def is_known(folder: Path, read: Mapping[str, bytes] | None = None) -> bool:
    """True for configs and scripts that are, byte for byte, those of a bundle of this project.

    Args:
        folder: of the bundle.
        read: paths below it, and what was read of them and will be used.
    """
    try:
        return not _unread_code(folder) and digest(folder, read) in set(json.loads(KNOWN.read_bytes()).values())
    except (OSError, ValueError):
        return False


def _paths(folder: Path) -> list[Path]:
    """All below a folder, sorted; links are not followed.

    Raises:
        OSError: a folder in it cannot be listed. What stands in it could be opened by its name all the same.
    """

    def fail(error: OSError) -> None:
        raise error

    return sorted(
        Path(parent) / name for parent, folders, files in os.walk(folder, onerror=fail) for name in (*folders, *files)
    )


def _unread_code(folder: Path) -> list[Path]:
    """What Python could import from a bundle's folder, or what leads out of it, beside the files that ``digest`` is of.

    A bundle's folder stands first on the path while its configs are resolved.
    """
    judged = set(_judged(folder))
    return [
        path
        for path in _paths(folder)
        if path.is_symlink() or (path.suffix.lower() in CODE and path not in judged and path.is_file())
    ]


def clear_compiled(folder: Path) -> None:
    """Remove what Python has compiled of a bundle's scripts: it is made anew of the text that was judged.

    Args:
        folder: of the bundle.
    """
    if not (folder / "scripts").is_symlink():
        shutil.rmtree(folder / "scripts" / "__pycache__", ignore_errors=True)  # a link itself is left alone


def digest(folder: Path, read: Mapping[str, bytes] | None = None) -> str:
    """SHA-256 over names and contents of all that a bundle's configs can run.

    Args:
        folder: of the bundle.
        read: paths below it, and what was read of them already.

    Raises:
        OSError: a file cannot be read, or a folder not be listed.
    """
    total, contents = hashlib.sha256(), read or {}
    for path in _judged(folder):
        name = path.relative_to(folder).as_posix()
        content = contents[name] if name in contents else path.read_bytes()
        total.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def _judged(folder: Path) -> list[Path]:
    """Configs and scripts; metadata, models, docs and what Python has compiled run nothing."""
    return [
        path
        for part in ("configs", "scripts")
        for path in _paths(folder / part)
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.stem != "metadata"
        and path.stat().st_size <= MOST_BYTES
    ]


def faults_of(folder: Path, *, only: Sequence[str] = ()) -> list[Fault]:
    """All that a bundle's files hold beyond what a plain bundle needs; nothing is resolved, imported or run.

    Args:
        folder: of the bundle.
        only: these files of it, by their paths below it, and links: what a program does not read cannot harm it.

    Returns:
        One fault a finding, in order of the files; empty for a plain bundle.
    """
    found: list[Fault] = []
    try:
        paths = _paths(folder)
    except OSError as error:
        return [Fault(Path(error.filename).name, 0, f"cannot be listed ({error.strerror})")]
    names = {path.relative_to(folder).as_posix() for path in paths}
    found += [Fault(name, 0, "is not in it by this name") for name in only if name not in names]
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found.append(Fault(name, 0, "a symbolic link: it may lead out of the bundle"))
        elif (only and name not in only) or path.is_dir():
            continue
        elif not path.is_file():
            found.append(Fault(name, 0, "neither file nor folder"))
        elif path.suffix.lower() in CODE:
            found.append(Fault(name, 0, f"{path.suffix} is code, or can hold some"))
        elif path.stem == "large_files":
            found.append(Fault(name, 0, "names files to be downloaded, and where they are put"))
        elif path.name == "logging.conf" or path.suffix in (".conf", ".cfg", ".ini"):
            found += _logging_faults(path, name)
        elif name.startswith("configs/") or ("/" not in name and path.suffix in (".json", ".yaml", ".yml")):
            found += _config_faults(path, name)
    return found


def _text(path: Path, name: str) -> str | Fault:
    try:
        if path.stat().st_size > MOST_BYTES:
            return Fault(name, 0, f"{path.stat().st_size} bytes, more than any config needs")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        return Fault(name, 0, f"cannot be read ({error})")


def _config_faults(path: Path, name: str) -> Iterator[Fault]:
    text = _text(path, name)
    if isinstance(text, Fault):
        yield text
        return
    try:
        content = _parsed(text, path.suffix)
    except (ValueError, RecursionError) as error:
        yield Fault(name, 0, f"no readable config ({error})")
        return
    if path.stem == "metadata":
        yield from _metadata_faults(content, name, text)
    if not isinstance(content, dict):
        return
    for reason, value in value_faults(content):
        yield Fault(name, line_of(value, text), reason)


def _parsed(text: str, suffix: str) -> Any:
    """JSON or YAML; a key that stands twice is refused, since readers differ in which one they take.

    Raises:
        ValueError: unreadable.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ValueError(f"a key stands twice: {next(key for key in keys if keys.count(key) > 1)}")
        return dict(pairs)

    if suffix == ".json":
        return json.loads(text, object_pairs_hook=once)
    import yaml

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> dict[str, Any]:
        return once(
            [
                (str(loader.construct_object(key, True)), loader.construct_object(value, True))
                for key, value in node.value
            ]
        )

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        if any(isinstance(token, (yaml.AnchorToken, yaml.AliasToken)) for token in yaml.scan(text, Strict)):
            raise ValueError("anchors and aliases: they can stand for more than is written")
        return yaml.load(text, Strict)  # noqa: S506  # built on SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(str(error).replace("\n", " ")) from error


def line_of(value: Any, text: str) -> int:
    """The line on which a value stands first, 1 where it cannot be told."""
    wanted = str(value)[:60]
    written = (wanted, *(json.dumps(wanted, ensure_ascii=ascii_)[1:-1] for ascii_ in (False, True)))
    for number, line in enumerate(text.splitlines(), 1):
        if any(form in line for form in written):
            return number
    return 1


def _metadata_faults(content: Any, name: str, text: str) -> Iterator[Fault]:
    """MONAI evaluates the shapes of a network's inputs and outputs."""
    for value in _shapes(content):
        if not isinstance(value, (int, str)) or (isinstance(value, str) and not SHAPE.fullmatch(value)):
            yield Fault(name, line_of(value, text), f"spatial_shape {value!r} is no product of numbers, n, p and 2**p")
        elif isinstance(value, str) and len(value) > 20:
            yield Fault(name, line_of(value, text), f"spatial_shape {value!r} may be of any size")


def _shapes(content: Any) -> Iterator[Any]:
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "spatial_shape":
                yield from value if isinstance(value, list) else [value]
            else:
                yield from _shapes(value)
    elif isinstance(content, list):
        for value in content:
            yield from _shapes(value)


def _logging_faults(path: Path, name: str) -> Iterator[Fault]:
    """Python evaluates ``class`` and ``args`` of a logging config."""
    text = _text(path, name)
    if isinstance(text, Fault):
        yield text
        return
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error as error:
        yield Fault(name, 0, f"no readable logging config ({str(error).splitlines()[0]})")
        return
    for section in parser.sections():
        items = dict(parser.items(section))
        for key, value in items.items():
            if key != "format" and "%(" in value:
                yield Fault(name, line_of(value, text), f"{key} is put together from other lines ({value!r})")
        if section.startswith("handler_"):
            if items.get("class", "StreamHandler") not in LOG_HANDLERS:
                yield Fault(name, line_of(items["class"], text), f"a handler of class {items['class']!r}")
            arguments = items.get("args", "()").replace("sys.stdout", "1").replace("sys.stderr", "1")
            if items.get("kwargs") or not _is_literal(arguments):
                yield Fault(
                    name, line_of(items.get("kwargs") or items.get("args"), text), "arguments that are evaluated"
                )
            elif not all(_is_plain_argument(part) for part in ast.literal_eval(arguments)):
                yield Fault(name, line_of(items["args"], text), "writes its log outside of the working folder")
        elif items.get("class"):
            yield Fault(name, line_of(items["class"], text), f"a class in {section}: {items['class']!r}")


def _is_literal(text: str) -> bool:
    try:
        return isinstance(ast.literal_eval(text), tuple)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def _is_plain_argument(part: object) -> bool:
    return part is None or isinstance(part, int) or (isinstance(part, str) and _stays_below(part))


def _stays_below(path: str) -> bool:
    parts = PurePosixPath(path.replace("\\", "/"))
    return not parts.is_absolute() and ".." not in parts.parts and ":" not in path


def unpacked(archive: Path, target: Path) -> Path:
    """Unpack a bundle's zip, unless an entry would leave the folder or fill the disk.

    Args:
        archive: the zip.
        target: folder, empty.

    Returns:
        The bundle's folder in it.

    Raises:
        PipelineError: no readable zip, or what it must not hold, each with its name.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            entries = file.infolist()
            faults = [Fault(shown(entry.filename), 0, reason) for entry in entries if (reason := _entry_fault(entry))]
            size = sum(entry.file_size for entry in entries)
            if size > MAX_UNPACKED_BYTES:
                faults.append(Fault(archive.name, 0, f"{size} bytes unpacked (at most {MAX_UNPACKED_BYTES})"))
            if faults:
                raise PipelineError(f"{archive}: not unpacked:\n{listed(faults)}")
            file.extractall(target)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # also unknown compression
        raise PipelineError(f"{archive}: no readable zip ({error}). Download it again.") from error
    top = list(target.iterdir())
    return top[0] if len(top) == 1 and top[0].is_dir() and top[0].name != "configs" else target


def _entry_fault(entry: zipfile.ZipInfo) -> str:
    name = entry.filename.replace("\\", "/")
    if not _stays_below(name):
        return "leads out of the folder it is unpacked into"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    return "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "a link or a special file"


def config_to_resolve(
    folder: Path, name: str, keys: Sequence[str], *, trust: bool = False
) -> tuple[dict[str, Any], str]:
    """A bundle's config as it may be resolved; of a bundle that is not this project's own what ``keys`` need alone.

    What is judged is what is returned: the file is read once.

    Args:
        folder: of the bundle.
        name: of the config, a path below it.
        keys: that will be resolved, or read.
        trust: take all of it, whatever it holds.

    Returns:
        The config and its SHA-256.

    Raises:
        PipelineError: unreadable; or foreign, and what the keys need is more than a plain bundle has, every finding
            with its file and line.
    """
    path = folder / name
    clear_compiled(folder)
    try:
        data = path.read_bytes()
        text = data.decode()
        content = dict(_parsed(text, path.suffix))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise PipelineError(f"{path}: no readable JSON config ({error}). Restore it with `make bundles`.") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if trust or is_known(folder, {name: data}):
        return content, sha256
    faults = [Fault(name, 0, f"{len(data)} bytes, more than any config needs")] if len(data) > MOST_BYTES else []
    faults += [fault for fault in faults_of(folder, only=(name,)) if fault.file != name or not fault.line]
    kept, beyond = part_for_prediction(content, keys)
    faults += sorted(
        (Fault(name, line_of(value, text), reason) for reason, value in beyond), key=lambda fault: fault.line
    )
    if faults:
        raise PipelineError(
            f"{folder}: not one of this project's bundles as they come, and it holds what could run code of its own:\n"
            f"{listed(faults)}\nRead it; if you trust it, pass --trust."
        )
    return kept, sha256


def listed(faults: Sequence[Fault], most: int = 20) -> str:
    """Faults for a message, a line each, cut after ``most``."""
    more = f"\n  and {len(faults) - most} more" if len(faults) > most else ""
    return "\n".join(f"  {fault}" for fault in faults[:most]) + more
