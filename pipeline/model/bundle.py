"""A MONAI bundle, ready to predict: preprocessing, network, inferer and postprocessing of its inference config."""

from __future__ import annotations

import gc
import json
import logging
import platform
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pipeline.scripts
from pipeline import __version__
from pipeline.errors import PipelineError
from pipeline.files import OWN, named_path
from pipeline.model.backends import BACKENDS, PACKAGES, TORCH, compiled
from pipeline.model.trust import refuse_foreign, refuse_links
from pipeline.scripts.faults import ready_libraries
from pipeline.scripts.files import sha256_bytes
from pipeline.scripts.records import RECORD, changed_settings, trained_settings, without_fetching
from pipeline.scripts.weights import WEIGHTS, load_state, read_state, read_weights

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser

    from pipeline.model.backends import Network

logger = logging.getLogger(__name__)

DEFAULT_BUNDLES = tuple(OWN / "bundles" / name for name in ("basic_unet", "attention_unet", "basic_unet_plusplus"))
"""The bundles whose average predicts where none is named: this package's own."""
CONFIG = "configs/inference.json"
SECTIONS_FOR_PREDICTION = ("device", "network", "preprocessing", "inferer", "to_probability", "to_mask")
"""Keys of the config by which a bundle predicts."""
PROVENANCE = ("name", "weights_sha256", "config_sha256", "settings", "recorded", "training")
"""What a result file tells of a bundle."""
TRAINING_FACTS = ("seed", "manifest_sha256", "device", "threads", "amp")
"""Keys of a training's record that name the source of a figure."""
TRAINING_CONFIG = ("image_size", "batch_size", "max_epochs", "steps_per_epoch", "learning_rate", "loss", "optimizer")
"""Keys of its config that do: they tell one training's budget and method from another's."""


@dataclass(frozen=True)
class Bundle:
    """A bundle with its weights, ready to predict.

    Args:
        name: The bundle's folder name, used in tables.
        device: The device that the network lies on.
        network: The network in evaluation mode; (B, 3, S, S) -> logits (B, 1, S, S).
        preprocessing: {"image": path} -> {"image": (3, S, S, D) float32 MetaTensor}.
        inferer: (batch, network) -> logits on the same grid, (1, 1, S, S, D).
        to_probability: {"image", "pred": logits (1, S, S, D)} -> "pred": probability (1, H, W, D), native grid.
        to_mask: {"pred": probability (1, H, W, D)} -> "pred": mask (1, H, W, D) of 0 and 1.
        weights_sha256: SHA-256 of the weights file.
        config_sha256: SHA-256 of the inference config.
        settings: Keys of the config that the weights were trained with other values of, and those values.
        record: The content of the ``training.json`` beside the weights; empty where there is none.
        backend: The name of what runs the network, a key of ``BACKENDS``.
        replaced: The weights in the bundle's folder are others than its metadata names, left by a training.
    """

    name: str
    device: torch.device
    network: Network
    preprocessing: Any
    inferer: Any
    to_probability: Any
    to_mask: Any
    weights_sha256: str
    config_sha256: str
    settings: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict, repr=False)
    backend: str = TORCH
    replaced: bool = False

    @property
    def recorded(self) -> bool:
        """Whether a ``training.json`` lies beside the weights."""
        return bool(self.record)

    @property
    def training(self) -> dict[str, Any]:
        """Seed, manifest, machine, budget and method of the training; empty where they are not recorded."""
        config = self.record.get("config", {})
        facts = {key: self.record[key] for key in TRAINING_FACTS if key in self.record}
        method = {key: config[key] for key in TRAINING_CONFIG if key in config}
        return {**facts, "config": method} if method else facts

    def provenance(self) -> dict[str, Any]:
        """What the predictions come from, for a file beside them."""
        return {key: getattr(self, key) for key in PROVENANCE}

    def as_trained(self) -> str:
        """One line that says by which settings the network sees the slices, and where they come from."""
        if not self.recorded:
            return f"{self.name}: no {RECORD} beside the weights, predicts as the bundle's config says"
        names = {key: value["_target_"] if isinstance(value, dict) else value for key, value in self.settings.items()}
        changed = ", ".join(f"{key} {value}" for key, value in names.items())
        own = " (other weights than the bundle came with)" if self.replaced else ""
        return f"{self.name}: sees slices as in training, by {changed or 'the settings of the bundle'}{own}"


def versions(backend: str) -> dict[str, str]:
    """Versions of everything that has a say in a figure."""
    names = ("torch", "monai", "numpy", "medpy", *PACKAGES.get(backend, ()))
    return {"python": platform.python_version(), "pipeline": __version__} | {name: version(name) for name in names}


def refuse_unequal(option: str, given: Sequence[object], bundles: Sequence[object]) -> None:
    """Refuse an option that is given, but not once for each bundle."""
    if given and len(given) != len(bundles):
        raise PipelineError(f"{len(given)} {option} for {len(bundles)} --bundle (expected one each, or none).")


def refuse_single_pass(bundles: int, *, flips: bool) -> None:
    """Refuse an uncertainty over one network without flips: there is nothing that could disagree."""
    if bundles < 2 and not flips:
        raise PipelineError("--uncertainty of one network (expected several). Pass --tta, or another --bundle.")


def load_bundles(
    bundles: Sequence[str | Path],
    weights: Sequence[str | Path] = (),
    backend: str = TORCH,
    *,
    device: str | None = None,
    trust: bool = False,
) -> list[Bundle]:
    """Load several bundles, to be averaged."""
    refuse_unequal("--weights", weights, bundles)
    files: Sequence[str | Path | None] = weights or [None] * len(bundles)
    pairs = zip(bundles, files, strict=True)
    return [load_bundle(folder, file, backend, device=device, trust=trust) for folder, file in pairs]


def config_of(bundle: str | Path, name: str = CONFIG) -> Path:
    """A config of a bundle that is named or given as a folder, by default the one by which it predicts."""
    folder = named_path(bundle, "bundles")
    config = folder / name
    if not config.is_file():
        raise PipelineError(f"{folder}: found no {name}. Give a bundle's name, such as basic_unet, or its folder.")
    return config


def device_of(name: str | None, backend: str = TORCH) -> str | None:
    """The device that a name stands for, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for the config's own choice.

    Raises:
        PipelineError: This machine has no such device, or the backend does not run on it.
    """
    if backend != TORCH:
        if name not in (None, "cpu"):
            raise PipelineError(f"--device {name}: --backend {backend} runs on the CPU. Leave one of them out.")
        return "cpu"
    if name is None:
        return None
    from pipeline.scripts.machine import devices

    found = devices()
    device = f"{name}:0" if name == "cuda" else name
    if device not in found:
        raise PipelineError(f"--device {name}: this machine has no such device (found: {', '.join(found)}). Pass one.")
    return device


def load_bundle(
    bundle: str | Path,
    weights: str | Path | None = None,
    backend: str = TORCH,
    *,
    device: str | None = None,
    trust: bool = False,
) -> Bundle:
    """Build a bundle's network and load its weights.

    Weights that were trained with overrides (``--image_size 96``) are used as they were trained: the plain values in
    the ``training.json`` beside them win over the config's. From then on the process keeps the memory that it frees.

    Args:
        bundle: A bundle's name, such as ``basic_unet``, or a folder that holds ``configs/inference.json``.
        weights: A state dict to use in place of ``models/model.pt``.
        backend: A key of ``BACKENDS``; all but ``torch`` run on the CPU.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for CUDA where there is some, else the CPU.
        trust: Also run a bundle that is not this project's: its config can run any code.

    Raises:
        PipelineError: The bundle is not this project's and not trusted, holds a link out of its folder, lacks its
            config or weights, has weights of another architecture or of a training that its config cannot repeat, the
            backend is not installed, or the machine has no such device.

    Example:
        >>> bundle = load_bundle("basic_unet")
        >>> bundle.name
        'basic_unet'
    """
    config = config_of(bundle)
    folder = config.parent.parent
    if backend not in BACKENDS:
        raise PipelineError(f"backend {backend!r} (expected {', '.join(BACKENDS)}).")
    refuse_links(folder)
    try:
        data = config.read_bytes()  # once: what is hashed is what is used
        content = dict(json.loads(data))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise PipelineError(f"{config}: no readable JSON config ({error}). Restore it from where it came.") from error
    if not trust:
        refuse_foreign(folder, {CONFIG: data})
    ready_libraries()
    # Imports throw away none of the thousands of objects that they make; to look for some takes a fifth of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        import torch
        from monai.bundle import ConfigParser
        from monai.transforms import Compose
    finally:
        if collecting:
            gc.enable()

    from pipeline.scripts.inferers import ShrinkingInferer
    from pipeline.scripts.memory import keep_freed_memory

    chosen = device_of(device, backend)
    _use_scripts(own=not trust)
    keep_freed_memory()
    parser = ConfigParser()
    parser.read_config(content)
    parser["bundle_root"] = str(folder.resolve())  # as a path: a name of a folder can be an expression too
    if not trust:
        parser["scripts_path"] = None  # the scripts are the package's own, and the bundle's folder is on no path
    if chosen:
        parser["device"] = f"$torch.device('{chosen}')"
    missing = [key for key in SECTIONS_FOR_PREDICTION if key not in parser]
    if missing:
        raise PipelineError(f"{config}: {', '.join(missing)} missing (expected a config made from bundles/template).")
    if "scripts_path" in parser:
        _resolved(parser, "scripts_path", config)
    place = _resolved(parser, "device", config, torch.device)
    given = read_weights(Path(weights) if weights else folder / WEIGHTS, folder, "--weights")
    logger.debug(f"{folder}: {config.name}, {given.path} (SHA-256 {given.sha256}), {backend} on {place}")
    state = read_state(given.data, given.path, place)
    settings = changed_settings(trained_settings(given.record, given.path), parser.get())
    parser.update(_as_overrides(settings))
    network = _resolved(parser, "network", config)
    load_state(network, state, given.path, folder)
    return Bundle(
        name=folder.resolve().name,
        device=place,
        network=compiled(
            network.eval(), backend, 3 * (2 * int(parser.get("around", 0)) + 1), int(parser.get("image_size", 0))
        ),
        preprocessing=_resolved(parser, "preprocessing", config),
        inferer=_resolved(parser, "inferer", config, ShrinkingInferer),
        to_probability=_resolved(parser, "to_probability", config, Compose),
        to_mask=_resolved(parser, "to_mask", config, Compose),
        weights_sha256=given.sha256,
        config_sha256=sha256_bytes(data),
        settings=settings,
        record=given.record,
        backend=backend,
        replaced=given.is_replaced,
    )


def _use_scripts(*, own: bool) -> None:
    """Have ``scripts`` mean this package's own, or the one that a bundle puts on the path.

    A bundle of this project holds the same files as the package, so the package's own are taken: whatever else lies in
    the bundle's folder is not imported. Another bundle's ``scripts`` may have been imported before.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
    if own:
        sys.modules["scripts"] = module = types.ModuleType("scripts")
        module.__path__ = pipeline.scripts.__path__


def _as_overrides(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training as values of the config; a network of the bundle's own needs its scripts on the path."""
    if "network_def" not in settings:
        return dict(settings)
    network = without_fetching(settings["network_def"])
    marks = {"_requires_": "@scripts_path"} if network["_target_"].startswith("scripts.") else {}
    return {**settings, "network_def": {**network, **marks}}


def _resolved(parser: ConfigParser, key: str, config: Path, kind: Callable[[Any], Any] | None = None) -> Any:
    """What a key of the config builds, handed to ``kind`` where that is given."""
    try:
        built = parser.get_parsed_content(key)
        return kind(built) if kind else built
    except Exception as error:  # a config's own code can raise anything
        cause = error.__cause__ or error
        raise PipelineError(
            f"{config}: {key!r} cannot be built ({cause}). Restore the bundle from where it came."
        ) from error
