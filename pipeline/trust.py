"""A bundle from elsewhere, read as text: what its configs would run, before anything of it runs.

MONAI instantiates any ``_target_`` and evaluates any ``$`` of a config that it is given, by design. So configs that are
not this project's own, by their hash, are held against a list of what a plain bundle needs: components of MONAI, torch
and ignite, and expressions of a small grammar. Whatever else stands there is named with its file and line. This is a
list of what is known to be harmless, not of what is known to be harmful. A bundle's own code (``scripts/``) cannot be
judged so.
"""

from __future__ import annotations

import ast
import configparser
import hashlib
import importlib
import inspect
import json
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import PipelineError
from pipeline.grammar import expression_fault
from pipeline.slices import shown

KNOWN = Path(__file__).with_name("bundles.json")
"""SHA-256 of configs and scripts of this project's bundles; ``pipeline.template`` writes it."""

MAX_UNPACKED_BYTES = 4 * 2**30
"""Of a bundle's zip; weights of the model zoo take less."""

MODULES = (
    *("monai.transforms", "monai.data", "monai.engines", "monai.handlers", "monai.inferers", "monai.losses"),
    *("monai.metrics", "monai.networks.nets", "monai.networks.blocks", "monai.networks.layers", "monai.optimizers"),
    *("torch.nn", "torch.optim", "torch.optim.lr_scheduler", "ignite.metrics"),
)
"""Whose classes may be components."""
COMPONENTS = {
    *("torch.device", "torch.utils.data.WeightedRandomSampler", "torch.utils.data.BatchSampler"),
    *("torch.utils.data.DataLoader", "torch.utils.tensorboard.SummaryWriter", "ignite.handlers.EMAHandler"),
    *("ignite.handlers.EarlyStopping", "ignite.handlers.ProgressBar", "ignite.handlers.TerminateOnNan"),
}
REFUSED = frozenset(
    [
        "CSVDataset",
        "CacheNTransDataset",
        "CellSamWrapper",
        "ClearMLImageHandler",
        "ClearMLStatsHandler",
        "CrossValidation",
        "CuCIM",
        "CuCIMd",
        "DataStats",
        "DataStatsd",
        "DecathlonDataset",
        "EfficientNetBN",
        "EfficientNetBNFeatures",
        "GDSDataset",
        "GarbageCollector",
        "LMDBDataset",
        "MILModel",
        "MLFlowHandler",
        "MedNISTDataset",
        "NPZDictItemDataset",
        "NrrdReader",
        "MedicalNetPerceptualSimilarity",
        "NumpyReader",
        "PerceptualLoss",
        "PersistentDataset",
        "RandCuCIM",
        "RandCuCIMd",
        "RandTorchIO",
        "RandTorchIOd",
        "RandTorchVisiond",
        "ResNetFeatures",
        "SimulateDelay",
        "SimulateDelayd",
        "TciaDataset",
        "TorchIO",
        "TorchIOd",
        "TorchVision",
        "TorchVisionFCModel",
        "TorchVisiond",
        "Transchex",
        "TrtHandler",
    ]
)
"""They read pickles, download, or call what they are given by name."""
BY_NAME = {
    "reader": {"ITKReader", "NibabelReader", "PILReader", "PydicomReader"},
    "writer": {"ITKWriter", "NibabelWriter", "PILWriter"},
}
"""Arguments that MONAI imports whatever they name, and what they may name."""
SHAPE = re.compile(r"[0-9np*+\-/() ]{1,40}")
MOST_BYTES, DEEPEST = 2**20, 60
"""Of a config, and of what lies within what: more than any plain bundle has, and a bound on reading."""
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


def is_known(folder: Path) -> bool:
    """True for configs and scripts that are, byte for byte, those of a bundle of this project.

    Args:
        folder: of the bundle.
    """
    try:
        return not _unread_code(folder) and digest(folder) in set(json.loads(KNOWN.read_bytes()).values())
    except (OSError, ValueError):
        return False


def _unread_code(folder: Path) -> list[Path]:
    """What Python could import from a bundle's folder, or what leads out of it, beside the files that ``digest`` is of.

    A bundle's folder stands first on the path while its configs are resolved.
    """
    judged = set(_judged(folder))
    return [
        path
        for path in folder.rglob("*")
        if path.is_symlink() or (path.suffix in CODE and path not in judged and path.is_file())
    ]


def clear_compiled(folder: Path) -> None:
    """Remove what Python has compiled of a bundle's scripts: it is made anew of the text that was judged.

    Args:
        folder: of the bundle.
    """
    shutil.rmtree(folder / "scripts" / "__pycache__", ignore_errors=True)


def digest(folder: Path) -> str:
    """SHA-256 over names and contents of all that a bundle's configs can run.

    Args:
        folder: of the bundle.

    Raises:
        OSError: a file cannot be read.
    """
    total = hashlib.sha256()
    for path in sorted(_judged(folder)):
        total.update(
            f"{path.relative_to(folder).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return total.hexdigest()


def _judged(folder: Path) -> list[Path]:
    """Configs and scripts; metadata, models, docs and what Python has compiled run nothing."""
    return [
        path
        for part in ("configs", "scripts")
        for path in (folder / part).rglob("*")
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
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found.append(Fault(name, 0, "a symbolic link: it may lead out of the bundle"))
        elif (only and name not in only) or path.is_dir():
            continue
        elif not path.is_file():
            found.append(Fault(name, 0, "neither file nor folder"))
        elif path.suffix in CODE:
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
    for reason, value in _value_faults(content):
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
    if re.search(r"(^|[\s:\-])[&*][A-Za-z0-9_]", text):
        raise ValueError("anchors and aliases: they can stand for more than is written")
    try:
        return yaml.load(text, Strict)  # noqa: S506  # built on SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(str(error).replace("\n", " ")) from error


def line_of(value: Any, text: str) -> int:
    """The line on which a value stands first, 1 where it cannot be told."""
    wanted = str(value)[:60]
    for number, line in enumerate(text.splitlines(), 1):
        if wanted in line or json.dumps(wanted, ensure_ascii=False)[1:-1] in line:
            return number
    return 1


def _value_faults(value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(reason, where) of everything below a value of a config."""
    if depth > DEEPEST:
        yield "nested deeper than any config needs", ""
    elif isinstance(value, dict):
        yield from _component_faults(value)
        for key, item in value.items():
            if re.search(r"#|::|^\+", str(key)):  # MONAI makes nested keys of it
                yield f"the key {key!r} (expected one without '#', '::' or a leading '+')", key
            yield from _value_faults(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _value_faults(item, depth + 1)
    elif isinstance(value, str):
        reason = _text_fault(value)
        if reason:
            yield reason, value


def _component_faults(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if "_target_" in value:
        target = value["_target_"]
        reason = f"_target_ is no text: {target!r}" if not isinstance(target, str) else target_fault(target)
        if reason:
            yield reason, target
    mode = value.get("_mode_", "default")
    if mode not in ("default", "callable"):
        yield f"_mode_ {mode!r} starts a debugger, or is not known", mode
    for key, given in value.items():
        if _fetches(key) and given not in (None, False):
            yield f"{key} fetches files", key
    if isinstance(value.get("_target_"), str):
        unset = [key for key in fetching_by_default(value["_target_"]) if key not in value]
        if unset:
            yield f"{value['_target_']} fetches files unless {unset[0]} is False", value["_target_"]
    for key, known in BY_NAME.items():
        given = value.get(key)
        for name in given if isinstance(given, list) else [given]:
            if isinstance(name, str) and name not in known:
                yield f"{key} {name!r} (expected {', '.join(sorted(known))})", name


def _text_fault(text: str) -> str:
    if text.startswith("$"):
        return expression_fault(text[1:])
    if text.startswith("%") and re.search(r"\.(json|ya?ml)\b", text, re.IGNORECASE):
        return f"a macro that reads another file: {text[:60]!r}"
    return ""


def _fetches(key: object) -> bool:
    return str(key).startswith(("pretrained", "download"))


@cache
def fetching_by_default(target: str) -> tuple[str, ...]:
    """Arguments by which a component of MONAI or torch fetches files where they are not given.

    Args:
        target: name of a class, with or without its module; others have none.
    """
    module, _, name = target.rpartition(".")
    for candidate in [part for part in MODULES if part == module or (not module and part.startswith("monai."))]:
        try:
            found = getattr(importlib.import_module(candidate), name, None)
            parameters = inspect.signature(found).parameters.values() if callable(found) else ()
        except (ImportError, ValueError, TypeError):
            continue
        if found is None:
            continue
        return tuple(
            parameter.name
            for parameter in parameters
            if _fetches(parameter.name) and parameter.default not in (None, False, inspect.Parameter.empty)
        )
    return ()


def target_fault(target: str) -> str:
    """Why a component is not taken, empty for a class of ``MODULES`` that is not ``REFUSED``.

    Args:
        target: value of ``_target_``.
    """
    name = target.rpartition(".")[2]
    if target in COMPONENTS:
        return ""
    if name in REFUSED:
        return f"_target_ {target!r} reads pickles, downloads, or calls what it is given by name"
    if "." in target:
        module = target.rpartition(".")[0]
        if module in MODULES and _is_class(module, name):
            return ""
    elif any(_is_class(module, name) for module in MODULES if module.startswith("monai.")):
        # MONAI looks a short name up in all of its modules: none may mean something else by it.
        others = [module for module in _modules_with(name) if not module.startswith(MODULES)]
        return f"_target_ {target!r} is also {others[0]}.{name}" if others else ""
    return f"_target_ {target[:80]!r} is no component of MONAI, torch or ignite that is known"


def _is_class(module: str, name: str) -> bool:
    return isinstance(getattr(importlib.import_module(module), name, None), type)


@cache
def _locator() -> Any:
    from monai.bundle.config_item import ComponentLocator

    return ComponentLocator(excludes=["metatensor"])


def _modules_with(name: str) -> list[str]:
    found = _locator().get_component_module_name(name)
    return [] if found is None else [found] if isinstance(found, str) else list(found)


def _metadata_faults(content: Any, name: str, text: str) -> Iterator[Fault]:
    """MONAI evaluates the shapes of a network's inputs and outputs."""
    for value in _shapes(content):
        if not isinstance(value, (int, str)) or (isinstance(value, str) and not SHAPE.fullmatch(value)):
            yield Fault(name, line_of(value, text), f"spatial_shape {value!r} is no product of numbers, n and p")
        elif isinstance(value, str) and ("**" in value.replace("2**", "") or len(value) > 20):
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
            elif any(isinstance(part, str) and not _stays_below(part) for part in ast.literal_eval(arguments)):
                yield Fault(name, line_of(items["args"], text), "writes its log outside of the working folder")
        elif items.get("class"):
            yield Fault(name, line_of(items["class"], text), f"a class in {section}: {items['class']!r}")


def _is_literal(text: str) -> bool:
    try:
        return isinstance(ast.literal_eval(text), tuple)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


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


def refuse_foreign(folder: Path, read: Sequence[str]) -> None:
    """Refuse a bundle that is not this project's own and holds more than a plain bundle needs in what will be read.

    Args:
        folder: of the bundle.
        read: paths below it of the files that the caller will resolve; its own code it cannot reach but through them.

    Raises:
        PipelineError: it is and does; every finding with its file and line.
    """
    clear_compiled(folder)
    faults = [] if is_known(folder) else faults_of(folder, only=read)
    if faults:
        raise PipelineError(
            f"{folder}: not one of this project's bundles as they come, and it holds what could run code of its own:\n"
            f"{listed(faults)}\nRead it; if you trust it, pass --trust."
        )


def listed(faults: Sequence[Fault], most: int = 20) -> str:
    """Faults for a message, a line each, cut after ``most``."""
    more = f"\n  and {len(faults) - most} more" if len(faults) > most else ""
    return "\n".join(f"  {fault}" for fault in faults[:most]) + more
