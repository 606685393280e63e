"""A training's config with experiments, recipe and command line on top; what it could not use is refused.

MONAI adds a mistyped override to the config in silence, and the run goes on without it. A value of a wrong type ends
MONAI's run in a traceback.
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
    """A config as a run records it; ``options`` are names that a mistyped override may have meant as well."""
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
                f"{file}: no readable YAML or JSON of keys and values ({cause}). Correct it."
            ) from error
    _refuse_unknown(overrides, parser.get(), "command line", options)
    # On the command line, unlike in a file, MONAI replaces the value of +KEY as that of KEY.
    parser.update({key.removeprefix("+"): value for key, value in overrides.items()})
    if faults := setting_faults(parser):
        raise PipelineError("\n".join(faults))
    parser.parse()
    result: dict[str, Any] = parser.get()
    return result


def _refuse_unknown(keys: Iterable[str], config: Any, subject: str, options: Sequence[str]) -> None:
    """Refuse keys that neither a config has nor an argument of one of its components (``network_def#bias``)."""
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
            "\n".join([f"{subject}: not in the config, MONAI would add them in silence:", *lines, "Correct the name."])
        )


def _items(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a config and its value, nested ones as ``train#trainer#amp``."""
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        yield f"{prefix}{key}", value
        yield from _items(value, f"{prefix}{key}#")


def _takes(component: Any, argument: str) -> bool:
    """True for a component whose signature names the argument."""
    from monai.bundle import ConfigComponent

    if not ConfigComponent.is_instantiable(component):
        return False
    module = str(ConfigComponent(component).resolve_module_name())  # type: ignore[no-untyped-call]
    if module.startswith("scripts."):  # the bundle's copy of this package's
        module = f"pipeline.{module}"
    target = pydoc.locate(module)
    # A class that hands **kwargs on takes what its base classes name.
    makers = [vars(base).get("__init__") for base in target.__mro__] if isinstance(target, type) else [target]
    return any(callable(maker) and argument in inspect.signature(maker).parameters for maker in makers)
