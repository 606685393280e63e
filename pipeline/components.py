"""What a config from elsewhere may instantiate and evaluate: classes by name, arguments, expressions, references.

Two lists. A whole bundle, as ``pipeline.vet`` reads it, may hold classes of MONAI, torch and ignite that neither read
pickles nor fetch, call what they are given by name, or send. What this package resolves of a bundle (``predicts``) may
hold less: transforms, inferers and networks alone, which read the volume that they are given and write nothing.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pipeline.grammar import expression_fault

MODULES = (
    *("monai.transforms", "monai.data", "monai.engines", "monai.handlers", "monai.inferers", "monai.losses"),
    *("monai.metrics", "monai.networks.nets", "monai.networks.blocks", "monai.networks.layers", "monai.optimizers"),
    *("torch.nn", "torch.optim", "torch.optim.lr_scheduler", "ignite.metrics"),
)
"""Whose classes may be components."""
COMPONENTS = {
    *("torch.device", "torch.utils.data.WeightedRandomSampler", "torch.utils.data.BatchSampler"),
    *("torch.utils.data.DataLoader", "ignite.handlers.EMAHandler"),
    *("ignite.handlers.EarlyStopping", "ignite.handlers.ProgressBar", "ignite.handlers.TerminateOnNan"),
}
PREDICTING = ("monai.transforms", "monai.inferers", "monai.networks.nets", "torch.nn")
"""Of ``MODULES`` those of what predicts."""
INFERERS = {"SimpleInferer", "SlidingWindowInferer", "SlidingWindowInfererAdapt", "SliceInferer"}
LOADS = re.compile(r"LoadImage(d|D|Dict)?")
LOAD_ARGUMENTS = {
    *("_target_", "_desc_", "_disabled_", "_mode_", "keys", "reader", "dtype", "image_only", "ensure_channel_first"),
    *("simple_keys", "prune_meta_pattern", "prune_meta_sep", "meta_keys", "meta_key_postfix", "allow_missing_keys"),
}
"""Others go on to a reader of any kind."""
WRITES = re.compile(r"Save|Write")
REFUSED = frozenset(
    [
        "CSVDataset",
        "CSVIterableDataset",
        "CSVSaver",
        "CacheNTransDataset",
        "CellSamWrapper",
        "ClassificationSaver",
        "ClearMLHandler",
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
        "FID",
        "FolderLayout",
        "ForkingPickler",
        "GDSDataset",
        "GarbageCollector",
        "GaussianMixtureModel",
        "InceptionScore",
        "LMDBDataset",
        "LearningRateFinder",
        "LogfileHandler",
        "MILModel",
        "MLFlowHandler",
        "MedNISTDataset",
        "MedicalNetPerceptualSimilarity",
        "NPZDictItemDataset",
        "NrrdReader",
        "NumpyReader",
        "PerceptualLoss",
        "PersistentDataset",
        "ProbMapProducer",
        "RandCuCIM",
        "RandCuCIMd",
        "RandTorchIO",
        "RandTorchIOd",
        "RandTorchVisiond",
        "ResNetFeatures",
        "SaveClassification",
        "SaveClassificationd",
        "SimulateDelay",
        "SimulateDelayd",
        "SummaryWriter",
        "TciaDataset",
        "TensorBoardHandler",
        "TensorBoardImageHandler",
        "TensorBoardStatsHandler",
        "TorchIO",
        "TorchIOd",
        "TorchVision",
        "TorchVisionFCModel",
        "TorchVisiond",
        "Transchex",
        "TrtHandler",
        "WriteFileMapping",
        "WriteFileMappingd",
        "ZarrAvgMerger",
    ]
)
"""They read pickles, fetch, send, compile, or call or write what they are given by name. By the class's own name."""
BY_NAME = {
    "reader": {"ITKReader", "NibabelReader", "PILReader", "PydicomReader"},
    "writer": {"ITKWriter", "NibabelWriter", "PILWriter"},
    "merger_cls": {"AvgMerger"},
}
"""Arguments that MONAI imports whatever they name, and what they may name."""
SPECIAL = {"_target_", "_desc_", "_requires_", "_disabled_", "_mode_"}
"""Keys of a component that are not arguments; others start a debugger, or may be anything of a later MONAI."""
DEEPEST = 60
"""Of what lies within what: more than any plain bundle has, and a bound on reading."""
Finding = tuple[str, Any]
"""A reason, and the text that it is for."""
_NESTED = "the key {!r} (expected one without '#', '::' or a leading '+')"
_FILE = re.compile(r"\.(json|ya?ml)", re.IGNORECASE)
RELATIVE = re.compile(r"[@%](#|::)")
"""References by place, into which MONAI pastes keys."""


def value_faults(value: Any, *, predicts: bool = False, depth: int = 0) -> Iterator[Finding]:
    """All in a value of a config that goes beyond the lists.

    Args:
        value: of a config.
        predicts: by the shorter list.
        depth: of the value.

    Yields:
        (reason, the text that it is for).
    """
    if depth > DEEPEST:
        yield "nested deeper than any config needs", ""
    elif isinstance(value, dict):
        yield from _component_faults(value, predicts=predicts)
        for key, item in value.items():
            if _is_nested(key):
                yield _NESTED.format(key), key
            elif predicts and not re.fullmatch(r"[\w-]+", str(key), re.ASCII):
                yield f"the key {str(key)[:60]!r} (expected letters, digits, '_' and '-')", key
            yield from value_faults(item, predicts=predicts, depth=depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from value_faults(item, predicts=predicts, depth=depth + 1)
    elif isinstance(value, str):
        reason = _text_fault(value, predicts=predicts)
        if reason:
            yield reason, value


def part_for_prediction(content: Mapping[str, Any], keys: Sequence[str]) -> tuple[dict[str, Any], list[Finding]]:
    """What of a config certain keys need, and what of that goes beyond the shorter list.

    Args:
        content: of a config.
        keys: of it that will be resolved.

    Returns:
        The keys themselves, all that they refer to, and imports; and (reason, the text that it is for).
    """
    kept: dict[str, Any] = {}
    faults: list[Finding] = [(_NESTED.format(key), key) for key in content if _is_nested(key)]
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key in content and key not in kept:
            kept[key] = content[key]
            waiting += [name for text in _texts(content[key]) for name in re.findall(r"@(\w+)", text, re.ASCII)]
    if "imports" in kept:
        faults.append(("a reference to a module", "@imports"))
    faults += value_faults({key: kept[key] for key in kept if key != "imports"}, predicts=True)
    imports = content.get("imports")
    if isinstance(imports, list):  # MONAI takes each for a name in expressions
        for text in imports:
            plain = isinstance(text, str) and text.startswith("$import ") and not expression_fault(text[1:])
            if not plain:
                faults.append((f"imports {str(text)[:60]!r}", text))
        kept["imports"] = imports
    return kept, faults


def _is_nested(key: object) -> bool:
    """True for a key of which MONAI makes nested ones."""
    return bool(re.search(r"#|::|^\+", str(key)))


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)) and depth <= DEEPEST:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item, depth + 1)


def _component_faults(value: dict[str, Any], *, predicts: bool) -> Iterator[Finding]:
    if "_target_" in value:
        yield from _target_faults(value, predicts=predicts)
    mode = value.get("_mode_", "default")
    if mode != "default":
        yield f"_mode_ {mode!r} (expected default: others make a function to call, or start a debugger)", mode
    for key, given in value.items():
        if isinstance(key, str) and key.startswith("_") and key not in SPECIAL and key not in ("_meta_",):
            yield f"the key {key!r} (expected {', '.join(sorted(SPECIAL))})", key
        if _fetches(key) and given not in (None, False):
            yield f"{key} fetches files", key
        if key == "allow_pickle":
            yield "allow_pickle reads pickles", key
    for key, known in BY_NAME.items():
        given = value.get(key)
        for name in given if isinstance(given, list) else [given]:
            if not _may_be_named(name, known, predicts=predicts):
                yield f"{key} {name!r} (expected {', '.join(sorted(known))})", name


def _may_be_named(name: object, known: set[str], *, predicts: bool) -> bool:
    if isinstance(name, dict):  # a component of its own
        return not predicts
    return name is None or (isinstance(name, str) and name in known)


def _target_faults(value: dict[str, Any], *, predicts: bool) -> Iterator[Finding]:
    target = value["_target_"]
    if not isinstance(target, str):
        yield f"_target_ is no text: {target!r}", target
        return
    reason = target_fault(target, predicts=predicts)
    if reason:
        yield reason, target
    unset = [key for key in fetching_by_default(target) if key not in value]
    if unset:
        yield f"{target} fetches files unless {unset[0]} is False", target
    if LOADS.fullmatch(target.rpartition(".")[2]):
        more = sorted(str(key) for key in value if key not in LOAD_ARGUMENTS)
        if more and predicts:
            yield f"{target} with {more[0]}, which goes on to its readers", more[0]


def _text_fault(text: str, *, predicts: bool) -> str:
    if RELATIVE.search(text) or text == "@":
        return f"a reference by place: {text[:60]!r}"
    if text.startswith("$"):
        if predicts and re.match(r"\s*(import|from)\b", text[1:]):
            return f"an import outside of imports: {text[1:61]!r}"
        return expression_fault(text[1:])
    if text.startswith("%") and (predicts or _FILE.search(text)):
        return f"a macro{'' if predicts else ' that reads another file'}: {text[:60]!r}"
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


def target_fault(target: str, *, predicts: bool = False) -> str:
    """Why a component is not taken, empty for a class of ``MODULES`` that is not ``REFUSED``.

    Args:
        target: value of ``_target_``.
        predicts: by the shorter list.
    """
    module, _, name = target.rpartition(".")
    if target in COMPONENTS and not predicts:
        return ""
    modules = PREDICTING if predicts else MODULES
    places = [part for part in modules if part == module or (not module and part.startswith("monai."))]
    found = next((found for part in places if (found := _class_in(part, name)) is not None), None)
    reason = ""
    if found is None:
        reason = "is no component of MONAI, torch or ignite that is known"
        reason += " (of a prediction: a transform, inferer or network)" if predicts else ""
    elif found.__name__ in REFUSED:
        reason = "reads pickles, fetches, sends, or calls or writes what it is given by name"
    elif predicts and WRITES.match(found.__name__):
        reason = "writes files"
    elif predicts and found.__module__.startswith("monai.inferers") and found.__name__ not in INFERERS:
        reason = f"is an inferer beside {', '.join(sorted(INFERERS))}"
    elif not module:
        # MONAI looks a short name up in all of its modules: none may mean something else by it.
        others = [place for place in _modules_with(name) if not place.startswith(MODULES)]
        reason = f"is also {others[0]}.{name}" if others else ""
    return reason and f"_target_ {target[:80]!r} {reason}"


def _class_in(module: str, name: str) -> type | None:
    """A class of a module's own, not one that it has imported from elsewhere."""
    found = getattr(importlib.import_module(module), name, None)
    own = isinstance(found, type) and f"{found.__module__}.".startswith(tuple(f"{part}." for part in MODULES))
    return found if own else None


@cache
def _locator() -> Any:
    from monai.bundle.config_item import ComponentLocator

    return ComponentLocator(excludes=["metatensor"])


def _modules_with(name: str) -> list[str]:
    found = _locator().get_component_module_name(name)
    return [] if found is None else [found] if isinstance(found, str) else list(found)
