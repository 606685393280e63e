"""Read a MONAI bundle: its inference config gives preprocessing, network, inferer and postprocessing."""

from __future__ import annotations

import argparse
import gc
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.backends import BACKENDS, PACKAGES, TORCH, compiled
from pipeline.components import fetching_by_default
from pipeline.errors import PipelineError
from pipeline.scripts.records import RECORD, SETTINGS, changed_settings, trained_settings
from pipeline.scripts.weights import WEIGHTS, read_weights
from pipeline.trust import config_to_resolve

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser

    from pipeline.backends import Network

CONFIG = "configs/inference.json"
NEEDED = ("device", "network", "preprocessing", "inferer", "to_probability", "to_mask")
"""Keys of its config by which a bundle predicts."""
TRAINING_FACTS = ("seed", "manifest_sha256", "device", "threads", "amp")
"""Keys of a training's record that go into what names a figure's source."""
TRAINING_CONFIG = ("image_size", "batch_size", "max_epochs", "steps_per_epoch", "learning_rate", "loss", "optimizer")
"""Keys of its config that do: what tells one training's budget and method from another's."""


@dataclass(frozen=True)
class Bundle:
    """What a bundle's own config defines, ready to predict.

    Args:
        name: of the folder.
        device: where the network lies.
        network: in evaluation mode, with its weights; (B, 3, S, S) -> logits (B, 1, S, S).
        preprocessing: {"image": path} -> {"image": (3, S, S, D) float32 MetaTensor}.
        inferer: (batch, network) -> logits of the same grid, (1, 1, S, S, D).
        to_probability: {"image", "pred": logits (1, S, S, D)} -> "pred": probability (1, H, W, D), native grid.
        to_mask: {"pred": probability (1, H, W, D)} -> "pred": mask (1, H, W, D) of 0 and 1.
        weights_sha256: of the weights file.
        config_sha256: of the inference config.
        settings: Values of the config that the weights were trained with other values of.
        recorded: a ``training.json`` lies beside the weights.
        training: seed, manifest, machine, budget and method of its training, empty where that is not recorded.
        training_patients: ids of the patients it was trained on, empty where that is not recorded.
        backend: what runs the network.
        replaced: its own weights are others than those that its metadata names; a training left them there.
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
    recorded: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    training_patients: tuple[str, ...] = ()
    backend: str = TORCH
    replaced: bool = False

    def provenance(self) -> dict[str, Any]:
        """What its predictions come from, for a file beside them."""
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "config_sha256": self.config_sha256,
            "settings": self.settings,
            "recorded": self.recorded,
            "training": self.training,
        }

    def as_trained(self) -> str:
        """One line that says how the network will see the slices, and who said so."""
        if not self.recorded:
            return f"{self.name}: no {RECORD} beside the weights, predicts as the bundle's config says"
        names = {key: value["_target_"] if isinstance(value, dict) else value for key, value in self.settings.items()}
        changed = ", ".join(f"{key} {value}" for key, value in names.items())
        own = " (other weights than the bundle came with)" if self.replaced else ""
        return f"{self.name}: as trained, {changed or 'the settings of its config'}{own}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--bundle``, ``--weights``, ``--tta`` and ``--backend``, alike for every command that predicts."""
    parser.add_argument(
        "--bundle", type=Path, action="append", required=True, help="bundle folder; given several times: averaged"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        action="append",
        default=[],
        help="state dict, one per --bundle (default: models/model.pt)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run a --bundle that is not this project's own, whatever code its configs hold (default: plain ones only)",
    )
    parser.add_argument("--tta", action="store_true", help="average with the prediction of the mirrored volume")
    parser.add_argument(
        "--backend",
        choices=list(BACKENDS),
        default=TORCH,
        help="what runs the networks; " + "; ".join(f"{name}: {meaning}" for name, meaning in BACKENDS.items()),
    )


def versions(backend: str) -> dict[str, str]:
    """Of everything that has a say in a figure."""
    names = ("torch", "monai", "numpy", "medpy", *PACKAGES.get(backend, ()))
    return {"python": platform.python_version(), "pipeline": __version__} | {name: version(name) for name in names}


def one_each(option: str, given: Sequence[Path], folders: Sequence[Path]) -> None:
    """Refuse an option that is given, but not once for each ``--bundle``.

    Raises:
        PipelineError: it is.
    """
    if given and len(given) != len(folders):
        raise PipelineError(f"{len(given)} {option} for {len(folders)} --bundle (expected one each, or none).")


def refuse_single_pass(networks: int, *, flips: bool) -> None:
    """Refuse an uncertainty over one network without flips: there is nothing that could disagree.

    Raises:
        PipelineError: it is one.
    """
    if networks < 2 and not flips:
        raise PipelineError("--uncertainty of one network (expected several). Pass --tta, or another --bundle.")


def load_bundles(
    folders: Sequence[Path], weights: Sequence[Path], backend: str, *, trust: bool = False
) -> list[Bundle]:
    """Bundles as the command line names them.

    Args:
        folders: of the bundles.
        weights: one for each, or none.
        backend: as for ``load_bundle``.
        trust: likewise.

    Raises:
        PipelineError: a number of weights that is neither, or what ``load_bundle`` raises.
    """
    one_each("--weights", weights, folders)
    files: Sequence[Path | None] = weights or [None] * len(folders)
    return [load_bundle(folder, file, backend, trust=trust) for folder, file in zip(folders, files, strict=True)]


def config_of(folder: Path) -> Path:
    """The config by which a bundle predicts.

    Raises:
        PipelineError: no such file: ``folder`` is no bundle.
    """
    config = folder / CONFIG
    if not config.is_file():
        raise PipelineError(f"{folder}: found no {CONFIG}. Name a bundle's folder, such as bundles/basic_unet.")
    return config


def load_bundle(folder: Path, weights: Path | None = None, backend: str = TORCH, *, trust: bool = False) -> Bundle:
    """Build a bundle's network and load its weights.

    A config can name any code: one that is not this project's own is read as text first (``pipeline.trust``). Weights
    trained with overrides (``--image_size 96``) are used as they were trained: the plain values in the
    ``training.json`` beside them win over the config's. From then on the whole process keeps the memory that it frees.

    Args:
        folder: of the bundle, holding ``configs/inference.json``.
        weights: a state dict in place of ``models/model.pt``.
        backend: a key of ``pipeline.backends.BACKENDS``; all but ``torch`` run on the CPU.
        trust: run a foreign bundle whatever its configs hold.

    Raises:
        PipelineError: a foreign bundle that is more than plain, config or weights missing, unreadable, or of another
            architecture (the differing keys are named), trained with another config than the bundle's, or a backend
            that is not installed.
    """
    # Thousands of modules, nothing of which is to be thrown away: looking for that takes a fifth of the time.
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
    from pipeline.scripts.machine import keep_freed_memory

    config = config_of(folder)
    keys = (*NEEDED, *SETTINGS, "network_def", "intensity")
    content, config_sha256 = config_to_resolve(folder, CONFIG, keys, trust=trust)
    _forget_scripts()
    keep_freed_memory()
    parser = ConfigParser()
    parser.read_config(content)
    parser["bundle_root"] = str(folder.resolve())  # as a path: a name of a folder can be an expression too
    if backend != TORCH:
        parser["device"] = "$torch.device('cpu')"
    missing = [key for key in NEEDED if key not in parser]
    if missing:
        raise PipelineError(f"{config}: {', '.join(missing)} missing (expected a config made from bundles/template).")
    if "scripts_path" in parser:
        _content(parser, "scripts_path", config)
    try:
        device = torch.device(_content(parser, "device", config))
    except (RuntimeError, TypeError) as error:
        raise PipelineError(
            f"{config}: 'device' names no device of this machine ({error}). Name cpu or cuda."
        ) from error
    given = read_weights(weights or folder / WEIGHTS, folder, "--weights")
    state = _read_state(given.data, given.path, device)
    settings = changed_settings(trained_settings(given.record, given.path), parser.get())
    parser.update(_without_fetching(settings))
    network = _content(parser, "network", config)
    _load_state(network, state, given.path, folder)
    return Bundle(
        name=folder.resolve().name,
        device=device,
        network=compiled(network.eval(), backend, int(parser.get("image_size", 0))),
        preprocessing=_content(parser, "preprocessing", config),
        inferer=ShrinkingInferer(_content(parser, "inferer", config)),
        to_probability=Compose(_content(parser, "to_probability", config)),
        to_mask=Compose(_content(parser, "to_mask", config)),
        weights_sha256=given.sha256,
        config_sha256=config_sha256,
        settings=settings,
        recorded=bool(given.record),
        training=_training(given.record),
        training_patients=tuple(map(str, given.record.get("training_patients", ()))),
        backend=backend,
        replaced=given.is_replaced,
    )


def _forget_scripts() -> None:
    """Have the next bundle import its own ``scripts``: another one may have been imported under this name."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]


def _without_fetching(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by which no encoder's weights are fetched: all weights come from the file."""
    network = settings.get("network_def")
    if network is None:
        return settings
    fetching = [
        *fetching_by_default(str(network["_target_"])),
        *(key for key in network if key.startswith("pretrained")),
    ]
    marks = {"_requires_": "@scripts_path"} if network["_target_"].startswith("scripts.") else {}
    return {**settings, "network_def": {**network, **dict.fromkeys(fetching, False), **marks}}


def _training(record: dict[str, Any]) -> dict[str, Any]:
    """Of a training's record what names a figure's source."""
    config = record.get("config", {})
    facts = {key: record[key] for key in TRAINING_FACTS if key in record}
    method = {key: config[key] for key in TRAINING_CONFIG if key in config}
    return {**facts, "config": method} if method else facts


def _content(parser: ConfigParser, key: str, config: Path) -> Any:
    try:
        return parser.get_parsed_content(key)
    except Exception as error:  # a config's own code can raise anything
        cause = error.__cause__ or error
        raise PipelineError(f"{config}: {key!r} cannot be built ({cause}). Restore it with `make bundles`.") from error


def _read_state(data: bytes, path: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """The state dict of a weights file; no code in it is run."""
    import io
    import zipfile

    import torch

    from pipeline.scripts.finite import first_three, not_finite

    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
                    raise ValueError("compressed: torch.save compresses nothing, and what it unpacks to has no bound")  # noqa: TRY301
        state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except Exception as error:
        # Its unpickler raises whatever a damaged file leads it to (IndexError, TypeError, struct.error among them).
        # torch's text may advise weights_only=False, which runs the file's code.
        raise PipelineError(
            f"{path}: no readable weights ({type(error).__name__}). Restore the file or train again."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PipelineError(f"{path}: no plain state dict (expected tensors by name). Use model.pt, not a checkpoint.")
    odd = not_finite(state.items())
    if odd:
        raise PipelineError(
            f"{path}: NaN or Inf in {first_three(odd)}. Take the weights of an earlier epoch, or train again."
        )
    return state


def _load_state(network: torch.nn.Module, state: dict[str, torch.Tensor], weights: Path, folder: Path) -> None:
    own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    problems = [f"missing {key}" for key in own.keys() - given.keys()]
    problems += [f"unexpected {key}" for key in given.keys() - own.keys()]
    problems += [f"{k}: {given[k]} (expected {own[k]})" for k in own.keys() & given.keys() if own[k] != given[k]]
    if problems:
        shown = "\n".join(f"  {problem}" for problem in sorted(problems)[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise PipelineError(
            f"{weights}: weights of another architecture than {folder} ({len(problems)} keys differ):\n{shown}{more}\n"
            "Choose the bundle they were trained with."
        )
    network.load_state_dict(state)
