"""The record of a training, ``training.json`` beside its weights: what prediction needs of it, as plain values.

Later versions of a bundle may reword its configs; these values keep their meaning. ``record["prediction"]`` holds the
image size, crop, intensities and network by which the weights were trained. It holds values alone, so that a record can
bring no code. ``record["config"]`` is the config as it ran, for people to read; nothing is taken over from it.
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

from .faults import PipelineError
from .files import content_of, matches_checksum, sha256_bytes

RECORD = "training.json"
"""The record beside trained weights."""
RECORD_VERSION = 2
PATIENTS = ("training_patients", "manifest_sha256", "pseudonymised")
"""What a record tells of the patients of a training; None or no patients where they are not known."""
MAX_RECORD_BYTES = 32 * 2**20
SETTINGS: dict[str, type] = {
    "image_size": int,
    "around": int,
    "crop_to_head": bool,
    "percentiles": list,
    "normalize_head": bool,
}
CONFIG_SECTIONS = ("network_def", "intensity", "head", "image_loading", "image_spatial", "neighbours")
TRAIN_CONFIG_SECTIONS = ("image_loading", "spatial", "to_slices", "preprocessing")
"""What decides what the network sees: plain keys of a config, its sections, and those below ``train``."""
PLACE_KEYS = {"dataset_dir", "ckpt_dir", "output_dir", "device", "cache_dir", "cache_rate", "resume", "allow_different"}
"""Config keys that say where a training runs, not what it is."""
OUR_NETWORK = "scripts.networks.UNetPlusPlus"
NOT_PLAIN_NETWORKS = (
    *("CellSamWrapper", "EfficientNetBN", "EfficientNetBNFeatures", "MILModel"),
    *("ResNetFeatures", "TorchVisionFCModel", "Transchex"),
)
"""Networks of MONAI that read or fetch files by themselves."""

_FIRST_FORM = {
    "2b58c74d1e0144883ba0782550718f9065f1a0df9a7842c086160e2e8c49c254": False,
    "cb7200ef604a02929e571192b105095e8d42bc1b4e45cce494b89213f08ebc36": True,
}
"""SHA-256 of the preprocessing's text in records of the first form -> ``normalize_head``."""
_FOLDERS = re.compile(r"(?<![\w./:])/(?:[^\s'\"/]+/)+")


def as_text(content: Any) -> str:
    """JSON of a record; paths of this machine are cut to their last part. What JSON does not know becomes text."""
    return json.dumps(_without_folders(json.loads(json.dumps(content, default=str))), indent=2)


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("$'", '$"')):  # a path that MONAI would have misread by itself
        with contextlib.suppress(ValueError, SyntaxError):
            value = str(ast.literal_eval(value[1:]))
    if Path(value).is_absolute():
        return Path(value).name
    return _FOLDERS.sub(lambda match: "" if Path(match[0]).is_dir() else match[0], value)


def for_prediction(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a training's config that prediction needs; ``own`` is the bundle's config without overrides.

    ``intensity`` is among them where the training changed it. ``unrecorded`` names what the training changed and what
    cannot be stored as plain values.
    """
    changed = [key for key in (*SETTINGS, *CONFIG_SECTIONS) if config.get(key) != own.get(key)]
    keys = [*SETTINGS, "network_def", *(key for key in changed if key == "intensity")]
    plain = {key: _without_requires(config.get(key)) for key in keys}
    if isinstance(plain["percentiles"], tuple):
        plain["percentiles"] = list(plain["percentiles"])
    values = {key: value for key, value in plain.items() if _is_setting(key, value)}
    train, own_train = (part.get("train", {}) for part in (config, own))
    changed += [f"train#{key}" for key in TRAIN_CONFIG_SECTIONS if train.get(key) != own_train.get(key)]
    return {**values, "unrecorded": [key for key in changed if key not in values]}


def is_network(definition: Any) -> bool:
    """True for a network of ``monai.networks.nets``, or of this project, whose arguments are plain values."""
    if not _has_plain_arguments(definition) or any(str(key).startswith("pretrained_") for key in definition):
        return False
    if definition.get("_target_") == OUR_NETWORK:
        return True
    found = _class_of("monai.networks.nets", definition)
    return found is not None and found.__name__ not in NOT_PLAIN_NETWORKS


def without_fetching(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A network's definition by which MONAI fetches no pretrained weights: all weights come from the file."""
    kind = _class_of("monai.networks.nets", definition)
    parameters = inspect.signature(kind).parameters.values() if kind else ()
    fetching = {parameter.name for parameter in parameters if parameter.default is True} | set(definition)
    return {**definition, **{key: False for key in fetching if key.startswith("pretrained")}}


def is_intensity(definition: Any) -> bool:
    """True for a list of MONAI's intensity transforms, none of them random, whose arguments are plain values."""
    if not isinstance(definition, list) or not all(map(_has_plain_arguments, definition)):
        return False
    found = [_class_of("monai.transforms.intensity.dictionary", item) for item in definition]
    return all(kind is not None and not hasattr(kind, "randomize") for kind in found)


def _class_of(module: str, definition: Mapping[str, Any]) -> type | None:
    """The class that ``_target_`` names, alone or with a package of MONAI before it, where ``module`` defines it."""
    package, _, name = str(definition.get("_target_")).rpartition(".")
    if package and not f"{module}.".startswith(f"{package}."):
        return None
    found = getattr(importlib.import_module(module), name, None)
    return found if isinstance(found, type) and found.__module__.startswith(module) else None


def _without_requires(value: Any) -> Any:
    """A component by itself: what it requires in one config is of no use in another. Other values stay."""
    return {key: value[key] for key in value if key != "_requires_"} if isinstance(value, Mapping) else value


def _has_plain_arguments(definition: Any) -> bool:
    """True for a component whose arguments are numbers, names, and lists or maps of them."""
    names = ("_target_", "_requires_")
    return isinstance(definition, Mapping) and _is_plain(
        {key: definition[key] for key in definition if key not in names}
    )


def _is_plain(value: Any) -> bool:
    """True for numbers, names, and lists or maps of them: no expression, reference, macro or component."""
    if isinstance(value, str):
        return not value.startswith(("$", "@", "%"))
    if isinstance(value, Mapping):
        return all(not str(key).startswith("_") and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float))


def load_record(path: Path, remedy: str = "Restore or remove it.") -> dict[str, Any]:
    """A record as such; one that is unreadable or damaged is refused, and ``remedy`` says what to do."""
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
    """The record beside weights; empty where there is none, refused where it is damaged or of other weights."""
    path = weights.with_name(RECORD)
    if not path.is_file():
        return {}
    record = load_record(path)
    if weights_sha256 not in {str(sha256).lower() for sha256 in record["weights"].values()}:
        raise PipelineError(
            f"{path}: belongs to other weights than {weights.name} beside it. Keep weights and record together, or "
            "remove the record to use them as the bundle's config says."
        )
    return record


def _trainings(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``PATIENTS`` of a training and of those before it, from whose weights it started, the latest first.

    Earlier versions wrote the patients of all trainings before into one ``init``.
    """
    found = [record]
    while init := found[-1].get("init"):
        found.append(init)
    return [{key: training.get(key) for key in PATIENTS} for training in found]


def seen_patients(record: Mapping[str, Any]) -> list[str]:
    """Ids of all known patients that weights were trained on, also by the weights that their training started from."""
    return sorted({str(patient) for training in _trainings(record) for patient in training["training_patients"] or ()})


def knows_all_patients(record: Mapping[str, Any]) -> bool:
    """Whether a record tells the patients of its training and of all trainings before it; an empty one does not."""
    return all(training["training_patients"] for training in _trainings(record))


def has_other_names(record: Mapping[str, Any], manifest_sha256: str | None, *, pseudonymised: bool) -> bool:
    """Whether a manifest may have other names for the patients of a record.

    It may where the manifest or that of a training is ``pseudonymised``, and they are not the same manifest. Records of
    earlier versions do not tell, and are taken to hold the patients' own ids.
    """
    return any(
        training["training_patients"]
        and (pseudonymised or training["pseudonymised"])
        and training["manifest_sha256"] != manifest_sha256
        for training in _trainings(record)
    )


def trained_settings(record: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What prediction takes over from a record, as key of a bundle's config -> plain value; empty for an empty record.

    Refused where the training changed what its record cannot tell, or where the record holds what is no plain value.
    """
    if not record:
        return {}
    if record.get("record_version", 1) not in (1, RECORD_VERSION):
        raise PipelineError(f"{path}: {RECORD} beside it was written by a later version. Use that version.")
    values = dict(record["prediction"] if "prediction" in record else _prediction_of_first_form(record["config"]))
    unrecorded = values.pop("unrecorded", [])
    if unrecorded:
        raise PipelineError(
            f"{path}: trained with {', '.join(map(str, unrecorded))} of its own, which a record cannot hold (only "
            "settings, and MONAI's networks and intensity transforms with plain values). Predict with a bundle whose "
            "configs say the same, without the record."
        )
    odd = [key for key, value in values.items() if not _is_setting(key, value)]
    if odd:
        raise PipelineError(
            f"{path}: {RECORD} beside it holds {', '.join(odd)} as none of the plain values that prediction takes "
            "over. Restore the record."
        )
    return {key: _without_requires(value) for key, value in values.items()}


def _is_setting(key: str, value: Any) -> bool:
    if key == "network_def":
        return is_network(value)
    if key == "intensity":
        return is_intensity(value)
    if key == "percentiles":
        return isinstance(value, list) and len(value) == 2 and all(type(limit) in (int, float) for limit in value)
    return key in SETTINGS and type(value) is SETTINGS[key]


def _prediction_of_first_form(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values by the config; its preprocessing must be word for word one of the two that bundles then had."""
    if not config:
        return {}
    config = json.loads(json.dumps(config).replace("scripts.unet_plusplus.", "scripts.networks."))
    values = for_prediction(config, config)
    if "network_def" not in values:
        return {"unrecorded": ["a network_def"]}
    text = [config.get(key) for key in ("head", "image_loading", "image_spatial", "intensity")]
    text += [config.get("train", {}).get(key) for key in ("image_loading", "deterministic_transforms")]
    sha256 = sha256_bytes(json.dumps(text, sort_keys=True).encode())
    if sha256 not in _FIRST_FORM:
        return {"unrecorded": ["a preprocessing"]}
    return {**values, "normalize_head": _FIRST_FORM[sha256], "percentiles": [1, 99.5]}


def changed_settings(settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, from ``trained_settings``, whose value differs in a bundle's config."""
    return {key: value for key, value in settings.items() if value != _without_requires(config.get(key))}
