"""A MONAI bundle, ready to predict: preprocessing, network, inferer and postprocessing of its inference config."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import platform
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
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
"""The package's own three bundles. Their average predicts if no bundle is named."""
CONFIG = "configs/inference.json"
SECTIONS_FOR_PREDICTION = ("device", "network", "preprocessing", "inferer", "to_probability", "to_mask")
"""Keys that an inference config needs for a prediction."""
PROVENANCE = ("name", "weights_sha256", "config_sha256", "settings", "recorded", "training")
"""Attributes of a ``Bundle`` that result files record."""
TRAINING_FACTS = ("seed", "manifest_sha256", "device", "threads", "amp")
"""Keys of a training's record that result files repeat."""
TRAINING_CONFIG = ("image_size", "batch_size", "max_epochs", "steps_per_epoch", "learning_rate", "loss", "optimizer")
"""Keys of a training's config that result files repeat: they show its budget and method."""


@dataclass(frozen=True)
class Bundle:
    """A bundle with its weights, ready to predict.

    Args:
        name: The bundle's folder name, used in tables.
        device: The device that holds the network.
        network: The network in evaluation mode; (B, 3, S, S) -> logits (B, 1, S, S).
        preprocessing: A transform, {"image": path} -> {"image": (3, S, S, D) float32 MetaTensor}.
        inferer: A function, (batch, network) -> logits (1, 1, S, S, D) on the batch's grid.
        to_probability: A transform, {"image", "pred": logits (1, S, S, D)} -> "pred": probability (1, H, W, D) on the
            image's own grid.
        to_mask: A transform, {"pred": probability (1, H, W, D)} -> "pred": mask (1, H, W, D) of 0 and 1.
        weights_sha256: SHA-256 of the weights file.
        config_sha256: SHA-256 of the inference config.
        settings: Config key -> value, for every value of the weights' training that differs from the config's.
        record: The content of the ``training.json`` beside the weights; empty if there is none.
        backend: The software that runs the network, a key of ``BACKENDS``.
        replaced: Whether a training has replaced the weights that the bundle's metadata names.
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
        """Seed, manifest, machine, budget and method of the training; empty if they are not recorded."""
        config = self.record.get("config", {})
        facts = {key: self.record[key] for key in TRAINING_FACTS if key in self.record}
        method = {key: config[key] for key in TRAINING_CONFIG if key in config}
        return {**facts, "config": method} if method else facts

    def provenance(self) -> dict[str, Any]:
        """Where the bundle's predictions come from, as values for JSON.

        Returns:
            A value for each name in ``PROVENANCE``: the bundle's name, SHA-256 of weights and config, and the rest.
        """
        return {key: getattr(self, key) for key in PROVENANCE}

    def as_trained(self) -> str:
        """One line for the log about settings or weights that are not the bundle's own; empty without any."""
        if not self.recorded:
            return f"{self.name}: no {RECORD} beside the weights, so the settings of the bundle's config are used"
        names = {key: value["_target_"] if isinstance(value, dict) else value for key, value in self.settings.items()}
        changed = ", ".join(f"{key} {value}" for key, value in names.items())
        parts = [f"settings of the training ({changed})"] if changed else []
        parts += ["weights of a later training, not those that the bundle came with"] if self.replaced else []
        return f"{self.name}: {', '.join(parts)}" if parts else ""


def versions(backend: str) -> dict[str, str]:
    """Versions of all software that can change a score: name -> version."""
    names = ("torch", "monai", "numpy", "medpy", *PACKAGES.get(backend, ()))
    return {"python": platform.python_version(), "pipeline": __version__} | {name: _version(name) for name in names}


def _version(module: str) -> str:
    try:
        return version(module)
    except PackageNotFoundError:  # a module of a package with another name, such as onnxruntime-gpu
        return str(importlib.import_module(module).__version__)


def refuse_unequal(option: str, given: Sequence[object], bundles: Sequence[object]) -> None:
    """Refuse an option that is given, but not once for each bundle."""
    if given and len(given) != len(bundles):
        raise PipelineError(f"{len(given)} {option} for {len(bundles)} --bundle (expected one each, or none).")


def refuse_single_pass(bundles: int, *, flips: bool) -> None:
    """Refuse uncertainty of one network without flips: one prediction has nothing to disagree with."""
    if bundles < 2 and not flips:
        raise PipelineError("--uncertainty with one network (expected several). Add --tta, or another --bundle.")


def load_bundles(
    bundles: Sequence[str | Path],
    weights: Sequence[str | Path] = (),
    backend: str = TORCH,
    *,
    device: str | None = None,
    trust: bool = False,
) -> list[Bundle]:
    """Several bundles, ready to predict. ``load_bundle`` loads each of them.

    Args:
        bundles: Names or folders of bundles.
        weights: A weights file for each bundle, in the same order; empty for the weights in the bundles.
        backend: A key of ``BACKENDS``.
        device: The device of the networks, such as ``cpu``; None for the one that the configs choose.
        trust: Also load bundles that are not this project's. Their configs can run any code.

    Raises:
        PipelineError: The numbers of bundles and weights differ, or a bundle cannot be loaded.
    """
    refuse_unequal("--weights", weights, bundles)
    files: Sequence[str | Path | None] = weights or [None] * len(bundles)
    pairs = zip(bundles, files, strict=True)
    return [load_bundle(folder, file, backend, device=device, trust=trust) for folder, file in pairs]


def config_of(bundle: str | Path, name: str = CONFIG) -> Path:
    """The path of a bundle's config.

    Args:
        bundle: The name of a bundle of this package, or the folder of any bundle.
        name: The file in the folder; by default the inference config.

    Raises:
        PipelineError: There is no such bundle, or it has no such config.
    """
    folder = named_path(bundle, "bundles")
    config = folder / name
    if not config.is_file():
        raise PipelineError(f"{folder}: found no {name}. Give a bundle's name, such as basic_unet, or its folder.")
    return config


def device_of(name: str | None, backend: str = TORCH) -> str | None:
    """PyTorch's name of a device that this machine has; None leaves the choice to the config.

    ``name`` is ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or None.

    Raises:
        PipelineError: This machine has no such device, or the backend cannot use it.
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
    """A bundle, ready to predict: its network with its weights, and its transforms.

    Weights that were trained with overrides (``--image_size 96``) keep these settings: the values in the
    ``training.json`` beside the weights replace those of the config. After this call, the process does not return
    freed memory to the system, which makes predictions faster.

    Args:
        bundle: A bundle's name, such as ``basic_unet``, or a folder that holds ``configs/inference.json``.
        weights: The file of a state dict, used in place of ``models/model.pt``.
        backend: The software that runs the network, a key of ``BACKENDS``; all but ``torch`` run on the CPU.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for CUDA if available, else the CPU.
        trust: Also load a bundle that is not this project's. Its config can run any code.

    Raises:
        PipelineError: The bundle is not this project's and ``trust`` is false. Its folder holds a link that leads out
            of it, or lacks config or weights. The weights fit another network, or a training that the config cannot
            repeat. The backend is not installed, or the machine has no such device.

    Examples:
        >>> import pipeline
        >>> bundle = pipeline.load_bundle("basic_unet")
        >>> bundle.name
        'basic_unet'
    """
    config = config_of(bundle)
    folder = config.parent.parent
    if backend not in BACKENDS:
        raise PipelineError(f"backend {backend!r}: unknown (expected {', '.join(BACKENDS)}). Pass one of these.")
    refuse_links(folder)
    try:
        data = config.read_bytes()  # only once, so that the hashed bytes are the bytes that are used
        content = dict(json.loads(data))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise PipelineError(f"{config}: no readable JSON config ({error}). Restore the original bundle.") from error
    if not trust:
        refuse_foreign(folder, {CONFIG: data})
    ready_libraries()
    # Garbage collection finds nothing to free during imports, and would take a fifth of their time.
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
    with _scripts(own=not trust):
        keep_freed_memory()
        parser = ConfigParser()
        parser.read_config(content)
        parser["bundle_root"] = str(folder.resolve())  # absolute: a name such as $x would be an expression
        if not trust:
            parser["scripts_path"] = None  # the package's own are used, so no folder goes on Python's path
        if chosen:
            parser["device"] = f"$torch.device('{chosen}')"
        missing = [key for key in SECTIONS_FOR_PREDICTION if key not in parser]
        if missing:
            raise PipelineError(
                f"{config}: {', '.join(missing)} missing (expected a config made from bundles/template)."
            )
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


@contextmanager
def _scripts(*, own: bool) -> Iterator[None]:
    """Make the module ``scripts`` the package's own, or leave it to the bundle to put its own on the path.

    A bundle of this project holds the same scripts as the package. The package's own are used, so that no other file in
    the bundle's folder is imported. They import nothing later, so ``scripts`` of the calling program return at the end.
    A bundle's own may import more at any time, so they stay.
    """
    before = _loaded_scripts()
    of_others = bool(before) and getattr(before.get("scripts"), "__path__", None) is not pipeline.scripts.__path__
    for name in before:
        del sys.modules[name]
    if own:
        sys.modules["scripts"] = module = types.ModuleType("scripts")
        module.__path__ = pipeline.scripts.__path__
    try:
        yield
    finally:
        if own and of_others:
            for name in _loaded_scripts():
                del sys.modules[name]
            sys.modules.update(before)


def _loaded_scripts() -> dict[str, types.ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "scripts"}


def _as_overrides(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training as config values. A network from the bundle's scripts also asks for them on the path."""
    if "network_def" not in settings:
        return dict(settings)
    network = without_fetching(settings["network_def"])
    marks = {"_requires_": "@scripts_path"} if network["_target_"].startswith("scripts.") else {}
    return {**settings, "network_def": {**network, **marks}}


def _resolved(parser: ConfigParser, key: str, config: Path, kind: Callable[[Any], Any] | None = None) -> Any:
    """The object that a config key builds, passed through ``kind`` if that is given."""
    try:
        built = parser.get_parsed_content(key)
        return kind(built) if kind else built
    except Exception as error:  # a config's own code can raise anything
        cause = error.__cause__ or error
        raise PipelineError(f"{config}: {key!r} cannot be built ({cause}). Restore the original bundle.") from error
