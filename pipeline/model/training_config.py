"""Overrides of a bundle's config: which keys exist, and which was meant where one does not.

MONAI adds a mistyped override to the config in silence, and the run goes on without it.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import PipelineError

SEPARATOR = "#"


def config_keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a config, nested ones as ``train#trainer#amp``."""
    items = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        path = f"{prefix}{key}"
        yield path
        yield from config_keys(value, path + SEPARATOR)


def check_overrides(config: Mapping[str, Any], keys: Iterable[str], subject: str, options: Sequence[str] = ()) -> None:
    """Refuse keys that the config does not have.

    An argument that a component takes but the config does not name (``network_def#bias``) is a key as well.
    """
    known = list(config_keys(config))
    lines = []
    for key in keys:
        name = key.removeprefix("+")
        if name not in known and not _is_argument(config, name):
            nearest = difflib.get_close_matches(name, [*known, *options], n=1, cutoff=0.0)
            lines.append(f"  {name} (nearest: {nearest[0]})" if nearest else f"  {name}")
    if lines:
        raise PipelineError(
            f"{subject}: not in the config, MONAI would add them in silence:\n"
            + "\n".join(lines)
            + "\nCorrect the name."
        )


def merged(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """A config with an experiment or recipe on top, as MONAI merges them; the file's keys are checked."""
    from monai.bundle import ConfigParser

    try:
        content = dict(ConfigParser.load_config_file(file))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        cause = " ".join(str(error).split())
        raise PipelineError(f"{file}: no readable YAML or JSON of keys and values ({cause}). Correct it.") from error
    check_overrides(config, content, str(file))
    parser = ConfigParser(copy.deepcopy(dict(config)))
    parser.update(content)
    result: dict[str, Any] = parser.get()
    return result


def as_recorded(config: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A config in the form in which a run records it: MONAI writes references in its own way."""
    from monai.bundle import ConfigParser

    parser = ConfigParser(copy.deepcopy(dict(config)))
    parser.update(dict(overrides or {}))
    parser.parse()
    result: dict[str, Any] = parser.get()
    return result


def _is_argument(config: Mapping[str, Any], name: str) -> bool:
    """True for an argument that the signature of a component names."""
    import inspect
    import pydoc

    from monai.bundle.config_item import ConfigComponent

    parent, _, argument = name.rpartition(SEPARATOR)
    node: Any = config
    for part in parent.split(SEPARATOR):
        if isinstance(node, list):
            node = node[int(part)] if part.isdigit() and int(part) < len(node) else None
        else:
            node = node.get(part) if isinstance(node, Mapping) else None
    if not ConfigComponent.is_instantiable(node):
        return False
    module = str(ConfigComponent(node).resolve_module_name())  # type: ignore[no-untyped-call]
    if module.startswith("scripts."):  # the bundle's copy of this package's
        module = f"pipeline.{module}"
    target = pydoc.locate(module)
    # A class that hands **kwargs on takes what its base classes name.
    makers = [vars(base).get("__init__") for base in target.__mro__] if isinstance(target, type) else [target]
    return any(callable(maker) and argument in inspect.signature(maker).parameters for maker in makers)
