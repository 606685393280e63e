"""Merge a training's config with experiments, recipe and command line, and refuse keys that have no effect.

MONAI adds a mistyped key to the config without a message, and the run continues without it. A value of a wrong type
ends MONAI's run with a traceback.
"""

from __future__ import annotations

import difflib
import inspect
import json
import pydoc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import PipelineError
from pipeline.scripts.config import REMOVED_FROM_TRAINING, removed_key, setting_faults


def config_with(
    config: Path, files: Sequence[Path], overrides: Mapping[str, Any], options: Sequence[str] = ()
) -> dict[str, Any]:
    """A training's config with all changes, as a run records it.

    Args:
        config: The bundle's training config, JSON.
        files: YAML or JSON files of experiments and recipe; later ones win.
        overrides: Config key -> value from the command line; they win over the files.
        options: Names of command-line options, to suggest for a mistyped key.

    Raises:
        PipelineError: A file cannot be read, or a key or value does not fit the config.
    """
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    parser = ConfigParser(json.loads(config.read_bytes()))
    for file in files:
        try:
            content = dict(ConfigParser.load_config_file(file))
            _refuse_unknown(content, parser.get(), str(file), ())
            for key, value in content.items():
                merge_kv(parser, key, value)
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            cause = " ".join(str(error).split())
            raise PipelineError(
                f"{file}: no readable YAML or JSON of keys and values ({cause}). Correct the file."
            ) from error
    _refuse_unknown(overrides, parser.get(), "command line", options)
    # MONAI merges +KEY in a file, but on the command line it replaces the value, as for KEY.
    parser.update({key.removeprefix("+"): value for key, value in overrides.items()})
    if faults := setting_faults(parser):
        raise PipelineError("\n".join(faults))
    parser.parse()
    result: dict[str, Any] = parser.get()
    return result


def _refuse_unknown(keys: Iterable[str], config: Any, subject: str, options: Sequence[str]) -> None:
    """Refuse keys that are not in a config, and are no argument of its components (``network_def#bias``)."""
    known = dict(_items(config))
    if removed := [removed_key(key, REMOVED_FROM_TRAINING) for key in keys if key in REMOVED_FROM_TRAINING]:
        raise PipelineError("\n".join(removed))
    lines = []
    for key in keys:
        name = key.removeprefix("+")
        parent, _, argument = name.rpartition("#")
        if name not in known and not _takes(known.get(parent), argument):
            nearest = difflib.get_close_matches(name, [*known, *options], n=1, cutoff=0.0)
            lines.append(f"  {name} (nearest: {', '.join(nearest)})")
    if lines:
        raise PipelineError(
            "\n".join([f"{subject}: keys that the config does not have:", *lines, "Correct the names."])
        )


def _items(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a config with its value; nested keys are written ``train#trainer#amp``."""
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        yield f"{prefix}{key}", value
        yield from _items(value, f"{prefix}{key}#")


def _takes(component: Any, argument: str) -> bool:
    """Whether a value is a component of the config with an argument of this name."""
    from monai.bundle import ConfigComponent

    if not ConfigComponent.is_instantiable(component):
        return False
    module = str(ConfigComponent(component).resolve_module_name())  # type: ignore[no-untyped-call]
    if module.startswith("scripts."):  # the bundle's copy of pipeline/scripts
        module = f"pipeline.{module}"
    target = pydoc.locate(module)
    # A class that passes **kwargs on also accepts the arguments of its base classes.
    makers = [vars(base).get("__init__") for base in target.__mro__] if isinstance(target, type) else [target]
    return any(callable(maker) and argument in inspect.signature(maker).parameters for maker in makers)
