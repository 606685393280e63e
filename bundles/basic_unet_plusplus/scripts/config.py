"""Checks of the config that runs: keys of earlier versions, allowed settings, and the config without overrides."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .faults import PipelineError, explain_faults

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
"""Key of an earlier config -> what to use in its place."""
REMOVED_FROM_TRAINING = {**REMOVED, "ckpt_path": "init, to start from weights"}


@dataclass(frozen=True)
class Setting:
    """The allowed values of a setting.

    Args:
        expected: The allowed values in words, for messages.
        allows: True for a value that is allowed.
    """

    expected: str
    allows: Callable[[Any], bool]


def _number(least: float, most: float = math.inf, *, whole: bool = False, between: bool = False) -> Setting:
    """A setting from ``least`` to ``most``. Both limits are allowed, unless the value must lie ``between`` them."""
    if most < math.inf:
        limits = f"between {least:g} and {most:g}" if between else f"from {least:g} to {most:g}"
    else:
        limits = f"above {least:g}" if between else f"of {least:g} or more"

    def allows(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not math.isfinite(value):
            return False
        return least < value < most if between else least <= value <= most

    return Setting(f"a {'whole ' if whole else ''}number {limits}", allows)


def _or_none(setting: Setting) -> Setting:
    return Setting(f"{setting.expected}, or None", lambda value: value is None or setting.allows(value))


def _are_percentiles(value: Any) -> bool:
    limits = value if isinstance(value, (list, tuple)) else ()
    return len(limits) == 2 and all(map(_number(0, 100).allows, limits)) and limits[0] < limits[1]


_COUNT, _SHARE = _number(1, whole=True), _number(0, 1)
_SWITCH = Setting("True or False, capitalised as in Python", lambda value: isinstance(value, bool))
_SWITCH_OR_TEXT = Setting("True or False", lambda value: str(value).lower() in ("true", "false"))
_PATH = Setting("a path; ./NAME for a name that is a number", lambda value: isinstance(value, (str, os.PathLike)))
SETTINGS = {
    "seed": _number(0, whole=True),
    "fold": _or_none(_number(0, whole=True)),
    **dict.fromkeys(("max_epochs", "steps_per_epoch", "batch_size", "sw_batch_size"), _COUNT),
    **dict.fromkeys(("val_interval", "log_interval", "world_size", "train#trainer#max_epochs"), _COUNT),
    **dict.fromkeys(("rank", "around", "early_stop_patience", "train#dataloader#num_workers"), _number(0, whole=True)),
    "image_size": _number(16, whole=True),
    **dict.fromkeys(("learning_rate", "gradient_clip"), _number(0, between=True)),
    "weight_decay": _number(0),
    "ema_momentum": _number(0, 1, between=True),
    **dict.fromkeys(("warmup_fraction", "cache_rate", "even_share", "threshold"), _SHARE),
    **dict.fromkeys(("amp", "deterministic", "crop_to_head", "normalize_head"), _SWITCH),
    **dict.fromkeys(("resume", "allow_different"), _SWITCH_OR_TEXT),
    "percentiles": Setting("two numbers from 0 to 100, the lower one first", _are_percentiles),
    **dict.fromkeys(("dataset_dir", "ckpt_dir", "output_dir", "ckpt_path"), _PATH),
    **dict.fromkeys(("init", "cache_dir"), _or_none(_PATH)),
}
"""Setting of a config -> its allowed values. An expression or a component in place of a value is not checked."""


def setting_faults(config: Any) -> list[str]:
    """A line for each unusable setting of a config, which is a MONAI ``ConfigParser``."""
    faults = [
        f"{key}: {config[key]!r} (expected {setting.expected})."
        for key, setting in SETTINGS.items()
        if key in config and not _is_expression(config[key]) and not setting.allows(config[key])
    ]
    return faults or _size_faults(config) + _channel_faults(config) + _device_faults(config.get("device"))


def check_settings(workflow: Sequence[Any]) -> None:
    """Refuse settings that no run could use.

    Args:
        workflow: The MONAI workflow that runs the config, in a sequence; empty where no workflow runs it.

    Raises:
        PipelineError: A setting has a wrong type or value. The message has a line for each.
    """
    faults = setting_faults(workflow[0].parser) if workflow else []
    if faults:
        explain_faults()
        raise PipelineError("\n".join(faults))


def _is_expression(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and value.startswith(("$", "@", "%")))


def _size_faults(config: Any) -> list[str]:
    """A line where the network halves a slice more often than its size allows.

    Such networks join a halved and enlarged image with the original one, so both must have the same size.
    """
    size, network = config.get("image_size"), config.get("network_def")
    if _is_expression(size) or not isinstance(network, dict):
        return []
    name, strides = str(network.get("_target_")).rpartition(".")[2], network.get("strides")
    if name not in ("AttentionUnet", "UNet") or not all(isinstance(stride, int) for stride in strides or [None]):
        return []
    factor = math.prod(strides or [])
    if not isinstance(size, int) or size % factor == 0:
        return []
    above = size + -size % factor
    return [f"image_size: {size} (expected a multiple of {factor} for {name}). Pass --image_size {above}."]


def _channel_faults(config: Any) -> list[str]:
    """A line where the network's channels do not fit the three sequences of a slice and its neighbours."""
    around, network = config.get("around", 0), config.get("network_def")
    channels = network.get("in_channels") if isinstance(network, dict) else None
    if not isinstance(around, int) or not isinstance(channels, int):
        return []
    needed = 3 * (2 * around + 1)
    if channels == needed:
        return []
    return [
        f"around: {around} (expected a network of {needed} channels, the config's takes {channels}). "
        f"Pass --network_def#in_channels {needed}, and weights of such a network."
    ]


def _device_faults(device: Any) -> list[str]:
    if not isinstance(device, str) or _is_expression(device):
        return []
    from .machine import devices  # imports torch

    name = f"{device}:0" if device == "cuda" else device
    found = devices()
    return [] if name in found else [f"device: {device!r} (expected one of this machine's: {', '.join(found)})."]


def refuse_removed_keys(workflow: Sequence[Any], removed: Mapping[str, str] = REMOVED) -> None:
    """Refuse keys of earlier versions, which MONAI accepts but nothing reads.

    Args:
        workflow: The MONAI workflow that runs the config, in a sequence; empty where no workflow runs it.
        removed: Key of an earlier version -> what to use in its place.

    Raises:
        PipelineError: The config has such keys. The message has a line for each.
    """
    if workflow and (found := [removed_key(key, removed) for key in removed if key in workflow[0].parser]):
        raise PipelineError("\n".join(found))


def removed_key(key: str, removed: Mapping[str, str]) -> str:
    """The message about a key of an earlier version."""
    return f"{key}: is no key of this version. Use {removed[key]}."


def config_without_overrides(path: Path) -> dict[str, Any]:
    """The content of a config file, in the form in which a workflow keeps it; empty where there is no file."""
    from monai.bundle import ConfigParser  # imports torch

    if not path.is_file():
        return {}
    parser = ConfigParser(ConfigParser.load_config_file(path))
    parser.resolve_macro_and_relative_ids()  # type: ignore[no-untyped-call]
    return dict(parser.get())
