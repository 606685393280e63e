"""Reads and writes the record of a training, ``training.json`` beside its weights, with what prediction needs.

``record["prediction"]`` holds the image size, crop, intensities and network of the training as plain values. They keep
their meaning when later versions of a bundle reword its configs, and they can hold no code. ``record["config"]`` is the
config as it ran, for people to read; prediction does not use it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import SETTINGS
from .faults import PipelineError
from .files import content_of, matches_checksum, sha256_bytes

RECORD = "training.json"
"""File name of the record beside trained weights."""
RECORD_VERSION = 2
PATIENTS = ("training_patients", "manifest_sha256", "pseudonymised")
"""Keys of a record about the patients of a training. They are None, or no patients, where these are not known."""
MAX_RECORD_BYTES = 32 * 2**20
RECORDED = ("image_size", "around", "crop_to_head", "percentiles", "normalize_head")
CONFIG_SECTIONS = ("network_def", "intensity", "head", "image_loading", "image_spatial", "neighbours")
TRAIN_CONFIG_SECTIONS = ("image_loading", "spatial", "to_slices", "preprocessing")
"""Settings and sections of a config that decide what the network sees: ``RECORDED`` are plain values,
``CONFIG_SECTIONS`` are components, and ``TRAIN_CONFIG_SECTIONS`` are components below ``train``."""
PLACE_KEYS = {"dataset_dir", "ckpt_dir", "output_dir", "device", "cache_dir", "cache_rate", "resume", "allow_different"}
"""Config keys that say where a training runs, not what it is."""
OUR_NETWORKS = ("scripts.networks.EfficientNetLiteUNet", "scripts.networks.UNetPlusPlus")
NOT_PLAIN_NETWORKS = (
    *("CellSamWrapper", "EfficientNetBN", "EfficientNetBNFeatures", "MILModel"),
    *("ResNetFeatures", "TorchVisionFCModel", "Transchex"),
)
"""MONAI's networks that read or download files themselves."""

_FOLDERS = re.compile(r"(?<![\w./:])/(?:[^\s'\"/]+/)+")


def as_text(content: Any) -> str:
    """The JSON text of a record. Absolute paths are cut to their last part, and values unknown to JSON become text."""
    return json.dumps(_without_folders(json.loads(json.dumps(content, default=str))), indent=2)


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("$'", '$"')):  # a path in quotes, as MONAI needs it
        with contextlib.suppress(ValueError, SyntaxError):
            value = str(ast.literal_eval(value[1:]))
    if Path(value).is_absolute():
        return Path(value).name
    return _FOLDERS.sub(lambda match: "" if Path(match[0]).is_dir() else match[0], value)


def for_prediction(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a training's config that prediction needs.

    Args:
        config: The config as it ran.
        own: The bundle's config without overrides.

    Returns:
        Config key -> plain value, with ``intensity`` only where the training changed it. ``unrecorded`` lists the keys
        that the training changed and that cannot be stored as plain values.
    """
    changed = [key for key in (*RECORDED, *CONFIG_SECTIONS) if config.get(key) != own.get(key)]
    keys = [*RECORDED, "network_def", *(key for key in changed if key == "intensity")]
    plain = {key: _without_requires(config.get(key)) for key in keys}
    if isinstance(plain["percentiles"], tuple):
        plain["percentiles"] = list(plain["percentiles"])
    values = {key: value for key, value in plain.items() if _is_setting(key, value)}
    train, own_train = (part.get("train", {}) for part in (config, own))
    changed += [f"train#{key}" for key in TRAIN_CONFIG_SECTIONS if train.get(key) != own_train.get(key)]
    return {**values, "unrecorded": [key for key in changed if key not in values]}


def is_network(definition: Any) -> bool:
    """Whether a definition is a network of ``monai.networks.nets`` or of this project, with plain arguments."""
    if not _has_plain_arguments(definition) or any(str(key).startswith("pretrained_") for key in definition):
        return False
    if definition.get("_target_") in OUR_NETWORKS:
        return True
    found = _class_of("monai.networks.nets", definition)
    return found is not None and found.__name__ not in NOT_PLAIN_NETWORKS


def without_fetching(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A network's definition with which MONAI downloads no pretrained weights: all weights come from the file."""
    kind = _class_of("monai.networks.nets", definition)
    parameters = inspect.signature(kind).parameters.values() if kind else ()
    fetching = {parameter.name for parameter in parameters if parameter.default is True} | set(definition)
    return {**definition, **{key: False for key in fetching if key.startswith("pretrained")}}


def is_intensity(definition: Any) -> bool:
    """Whether a definition is a list of MONAI's intensity transforms, none of them random, with plain arguments."""
    if not isinstance(definition, list) or not all(map(_has_plain_arguments, definition)):
        return False
    found = [_class_of("monai.transforms.intensity.dictionary", item) for item in definition]
    return all(kind is not None and not hasattr(kind, "randomize") for kind in found)


def _class_of(module: str, definition: Mapping[str, Any]) -> type | None:
    """The class that ``_target_`` names, with or without a package of MONAI before it; None if not of ``module``."""
    package, _, name = str(definition.get("_target_")).rpartition(".")
    if package and not f"{module}.".startswith(f"{package}."):
        return None
    found = getattr(importlib.import_module(module), name, None)
    return found if isinstance(found, type) and found.__module__.startswith(module) else None


def _without_requires(value: Any) -> Any:
    """A component without ``_requires_``, which has no meaning in another config. Other values stay the same."""
    return {key: value[key] for key in value if key != "_requires_"} if isinstance(value, Mapping) else value


def _has_plain_arguments(definition: Any) -> bool:
    """Whether a component's arguments are only numbers, names, and lists or maps of them."""
    names = ("_target_", "_requires_")
    return isinstance(definition, Mapping) and _is_plain(
        {key: definition[key] for key in definition if key not in names}
    )


def _is_plain(value: Any) -> bool:
    """Whether a value holds only numbers, names, and lists or maps of them: no expression, reference or component."""
    if isinstance(value, str):
        return not value.startswith(("$", "@", "%"))
    if isinstance(value, Mapping):
        return all(not str(key).startswith("_") and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float))


def load_record(path: Path, remedy: str = "Restore or remove it.") -> dict[str, Any]:
    """The content of a record file.

    Args:
        path: The record.
        remedy: What to do about an unreadable record, a sentence for the message.

    Raises:
        PipelineError: The record is missing, unreadable or damaged.
    """
    try:
        data = content_of(path, MAX_RECORD_BYTES)
        record: dict[str, Any] = json.loads(data)
        dict(**record["config"]), dict(**record["weights"]), dict(**record.get("prediction", {}))
        seen_patients(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path}: no readable record of a training ({error}). {remedy}") from error
    if not matches_checksum(path, sha256_bytes(data)):
        raise PipelineError(f"{path}: damaged, its SHA-256 is not that in {path.name}.sha256 beside it. Restore it.")
    return record


def read_record(weights: Path, weights_sha256: str) -> dict[str, Any]:
    """The record beside weights; empty where there is none.

    Args:
        weights: The weights file.
        weights_sha256: The SHA-256 of its content.

    Raises:
        PipelineError: The record is damaged, or belongs to other weights.
    """
    path = weights.with_name(RECORD)
    if not path.is_file():
        return {}
    record = load_record(path)
    if weights_sha256 not in {str(sha256).lower() for sha256 in record["weights"].values()}:
        raise PipelineError(
            f"{path}: belongs to other weights than {weights.name} beside it. Keep weights and record together, or "
            "remove the record to use the weights with the bundle's config."
        )
    return record


def _trainings(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``PATIENTS`` of a training and of the trainings whose weights it started from, the latest first.

    Earlier versions wrote the patients of all earlier trainings into one ``init``.
    """
    found = [record]
    while init := found[-1].get("init"):
        found.append(init)
    return [{key: training.get(key) for key in PATIENTS} for training in found]


def seen_patients(record: Mapping[str, Any]) -> list[str]:
    """Ids of all known patients of a training and of the trainings whose weights it started from, sorted."""
    return sorted({str(patient) for training in _trainings(record) for patient in training["training_patients"] or ()})


def knows_all_patients(record: Mapping[str, Any]) -> bool:
    """Whether a record names the patients of its training and of all earlier trainings. An empty one does not."""
    return all(training["training_patients"] for training in _trainings(record))


def has_other_names(record: Mapping[str, Any], manifest_sha256: str | None, *, pseudonymised: bool) -> bool:
    """Whether a manifest may have other names for the patients of a record.

    This is so where the two manifests differ and one of them has pseudonyms. Records of earlier versions do not say
    whether they hold pseudonyms, and count as records without.

    Args:
        record: The record of a training.
        manifest_sha256: The SHA-256 of the manifest; None where it is not known.
        pseudonymised: Whether the manifest has pseudonyms.
    """
    return any(
        training["training_patients"]
        and (pseudonymised or training["pseudonymised"])
        and training["manifest_sha256"] != manifest_sha256
        for training in _trainings(record)
    )


def trained_settings(record: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings that prediction uses from a record: key of a bundle's config -> plain value.

    Args:
        record: The record of a training; an empty one has no settings.
        path: The weights, for messages.

    Raises:
        PipelineError: The record is of another version, the training changed something that a record cannot hold, or
            the record holds a value that is not plain.
    """
    if not record:
        return {}
    if record.get("record_version") != RECORD_VERSION:
        raise PipelineError(f"{path}: {RECORD} beside it was written by another version. Use that version.")
    values = dict(record["prediction"])
    unrecorded = values.pop("unrecorded", [])
    if unrecorded:
        raise PipelineError(
            f"{path}: trained with its own {', '.join(map(str, unrecorded))}, which a record cannot hold (only "
            "settings, and MONAI's networks and intensity transforms with plain values). Remove the record and predict "
            "with a bundle whose configs hold the same."
        )
    odd = [key for key, value in values.items() if not _is_setting(key, value)]
    if odd:
        raise PipelineError(
            f"{path}: {RECORD} beside it holds {', '.join(odd)} (expected plain values of known settings). Restore the "
            "record."
        )
    return {key: _without_requires(value) for key, value in values.items()}


def _is_setting(key: str, value: Any) -> bool:
    if key == "network_def":
        return is_network(value)
    if key == "intensity":
        return is_intensity(value)
    return key in RECORDED and SETTINGS[key].allows(value)


def changed_settings(settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings, from ``trained_settings``, whose value differs in a bundle's config.

    A config may hold tuples, such as ``--percentiles 1,99`` from a command line. Records hold lists.
    """
    now = json.loads(as_text({key: _without_requires(config.get(key)) for key in settings}))
    return {key: value for key, value in settings.items() if value != now[key]}
