"""The config that runs: keys of earlier versions, switches, and the bundle's own text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .faults import PipelineError

REMOVED = {
    "attached": "train#handlers",
    "check": "train#handlers",
    "checks": "train#handlers",
    "clip_gradients": "gradient_clip",
    "datalist": "dataset_dir",
    "early_stop": "early_stop_patience",
    "may_change": "allow_different",
    "mean_dsc": "key_metric, or validate#key_metric",
    "missing_sequences": "augmentation",
    "scored_volumes": "key_metric, or validate#key_metric",
    "stop_at_nan_prediction": "handlers, or validate#handlers",
    "train#cpu_autocast": "amp",
    "train#deterministic_transforms": "train#spatial",
    "train#sampler": "batch_size and steps_per_epoch",
    "validate#pictures": "validate#handlers",
}
"""Keys of earlier configs -> what to use in their place."""


def refuse_removed_keys(workflow: Sequence[Any], removed: Mapping[str, str] = REMOVED) -> None:
    """Refuse keys of earlier versions, which MONAI would accept and nothing would read."""
    found = [key for key in removed if workflow and key in workflow[0].parser]
    if found:
        raise PipelineError("\n".join(f"{key}: is no key of this version. Use {removed[key]}." for key in found))


def refuse_text_switches(workflow: Sequence[Any], *keys: str) -> None:
    """Refuse switches that are no booleans: ``--crop_to_head false`` is text, and text counts as true.

    A component or expression that gives the switch is taken as it is.
    """
    for key in keys if workflow else ():
        value = workflow[0].parser[key]
        is_expression = isinstance(value, dict) or str(value).startswith(("$", "@"))
        if not isinstance(value, bool) and not is_expression:
            raise PipelineError(f"{key}: {value!r} (expected True or False, capitalised as in Python).")


def config_without_overrides(path: Path) -> dict[str, Any]:
    """A config file in the form in which a workflow keeps a config; empty where there is no file."""
    from monai.bundle import ConfigParser  # brings torch

    if not path.is_file():
        return {}
    parser = ConfigParser(ConfigParser.load_config_file(path))
    parser.resolve_macro_and_relative_ids()  # type: ignore[no-untyped-call]
    return dict(parser.get())
