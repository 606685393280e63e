"""Read a MONAI bundle: its inference config gives preprocessing, network, inferer and postprocessing."""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.backends import BACKENDS, PACKAGES, TORCH, compiled
from pipeline.components import fetching_by_default, macro_files, target_fault
from pipeline.errors import PipelineError
from pipeline.files import content_of, proof_of
from pipeline.records import RECORD
from pipeline.trust import config_to_resolve

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser

    from pipeline.backends import Network

CONFIG = "configs/inference.json"
WEIGHTS = "models/model.pt"
METADATA = "configs/metadata.json"
SAME_AS_TRAINED = ("network_def", "head", "image_loading", "image_spatial", "intensity")
"""Config keys that decide what the network sees; training and prediction must agree in them."""
PLAIN_SETTINGS = {"image_size": int, "crop_to_head": bool}
"""Numbers and switches that do the same; prediction takes them over as they were trained."""
MOST_WEIGHTS_BYTES, MOST_RECORD_BYTES = 4 * 2**30, 32 * 2**20
NEEDED = ("device", "network", "preprocessing", "inferer", "to_probability", "to_mask")
"""Keys of its config by which a bundle predicts."""
TRAINING = "configs/train.json"
TRAINING_ALONE = ("image_loading", "deterministic_transforms", "preprocessing")
"""The same in the section ``train``; the bundle's own training config tells what goes with its prediction."""
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
        settings: ``PLAIN_SETTINGS`` and ``network_def`` where the weights were trained with others than the config's.
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
    trained with overrides (``--image_size 96``) are
    used as they were trained: image size, crop and network are taken over from the ``training.json`` beside them. The
    config's ``keep_memory`` holds for the whole process from then on: what it frees stays with it.

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

    config = config_of(folder)
    keys = (*NEEDED, "keep_memory", *SAME_AS_TRAINED, *PLAIN_SETTINGS)
    content, config_sha256 = config_to_resolve(folder, CONFIG, keys, trust=trust)
    parser = ConfigParser()
    parser.read_config(content)
    parser["bundle_root"] = str(folder.resolve())  # as a path: a name of a folder can be an expression too
    if backend != TORCH:
        parser["device"] = "$torch.device('cpu')"
    missing = [key for key in NEEDED if key not in parser]
    if missing:
        raise PipelineError(f"{config}: {', '.join(missing)} missing (expected a config made from bundles/template).")
    if "keep_memory" in parser:
        _content(parser, "keep_memory", config)
    weights = weights or folder / WEIGHTS
    try:
        device = torch.device(_content(parser, "device", config))
    except (RuntimeError, TypeError) as error:
        raise PipelineError(
            f"{config}: 'device' names no device of this machine ({error}). Name cpu or cuda."
        ) from error
    data, weights_sha256 = _read_bytes(weights)
    record = _read_record(weights, weights_sha256)
    own = weights.resolve() == (folder / WEIGHTS).resolve()
    if own and not record:
        _check_own_weights(folder, weights_sha256)
    state = _read_state(data, weights, device)
    settings = _trained_settings(record, weights, parser, folder)
    parser.update(settings)
    network = _content(parser, "network", config)
    _load_state(network, state, weights, folder)
    return Bundle(
        name=folder.resolve().name,
        device=device,
        network=compiled(network.eval(), backend, int(parser.get("image_size", 0))),
        preprocessing=_content(parser, "preprocessing", config),
        inferer=_content(parser, "inferer", config),
        to_probability=Compose(_content(parser, "to_probability", config)),
        to_mask=Compose(_content(parser, "to_mask", config)),
        weights_sha256=weights_sha256,
        config_sha256=config_sha256,
        settings=settings,
        recorded=bool(record),
        training=_training(record),
        training_patients=tuple(map(str, record.get("training_patients", ()))),
        backend=backend,
        replaced=own and named_weights(folder) not in (None, weights_sha256),
    )


def _training(record: dict[str, Any]) -> dict[str, Any]:
    """Of a training's record what names a figure's source."""
    config = record.get("config", {})
    facts = {key: record[key] for key in TRAINING_FACTS if key in record}
    method = {key: config[key] for key in TRAINING_CONFIG if key in config}
    return {**facts, "config": method} if method else facts


def _read_record(weights: Path, weights_sha256: str) -> dict[str, Any]:
    """What ``training.json`` beside the weights tells of their training; empty where there is none.

    Raises:
        PipelineError: the record is unreadable, or of other weights.
    """
    path = weights.with_name(RECORD)
    if not path.is_file():
        return {}
    try:
        data = content_of(path, MOST_RECORD_BYTES)
        record: dict[str, Any] = json.loads(data)
        dict(record["config"]), list(record.get("training_patients", []))
        known = set(dict(record["weights"]).values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"{path}: no readable record of a training ({error}). Restore or remove it.") from error
    _refuse_damaged(path, hashlib.sha256(data).hexdigest())
    if weights_sha256 not in known:
        raise PipelineError(
            f"{path}: belongs to other weights than {weights.name} beside it. Keep weights and record together, or "
            "remove the record to use them as the bundle's config says."
        )
    return record


def _trained_settings(record: dict[str, Any], weights: Path, parser: ConfigParser, folder: Path) -> dict[str, Any]:
    """What training overrode: image size, crop, and the network where it is one of MONAI's with plain arguments.

    Numbers and names only, so that a record cannot bring code.

    Raises:
        PipelineError: the record tells of another network or preprocessing than the bundle's.
    """
    trained = dict(record.get("config", {}))
    settings: dict[str, Any] = {}
    network = trained.get("network_def")
    if isinstance(network, dict) and network != parser.get().get("network_def") and _is_stock_network(network):
        # The weights come from the file: nothing is fetched for an encoder that was pretrained.
        fetching = [key for key in ("pretrained",) if key in network]
        fetching += fetching_by_default(str(network["_target_"]))
        settings["network_def"] = {**network, **dict.fromkeys(fetching, False)}
        trained.pop("network_def")
    differing = [key for key in SAME_AS_TRAINED if key in trained and trained[key] != parser.get().get(key)]
    differing += _trained_otherwise(trained, folder / TRAINING)
    if differing:
        raise PipelineError(
            f"{weights}: trained with another {', '.join(differing)} than the bundle's. "
            "Evaluate with a bundle whose config says the same."
        )
    for key, kind in PLAIN_SETTINGS.items():
        if type(trained.get(key)) is kind and trained[key] != parser.get().get(key):
            settings[key] = trained[key]
    return settings


def _trained_otherwise(trained: dict[str, Any], config: Path) -> list[str]:
    """Keys of the section ``train`` by which a training saw volumes otherwise than the bundle's own training does."""
    from monai.bundle import ConfigParser

    section = trained.get("train")
    if not isinstance(section, dict) or not config.is_file():
        return []
    try:
        content = json.loads(config.read_bytes())
    except (OSError, ValueError) as error:
        raise PipelineError(f"{config}: no readable JSON config ({error}). Restore it with `make bundles`.") from error
    for macro in macro_files(content):
        raise PipelineError(f"{config}: {macro!r} would read another file. Write its content there.")
    parser = ConfigParser(content)
    parser.resolve_macro_and_relative_ids()  # type: ignore[no-untyped-call]  # as the record was written
    own = parser.get().get("train", {})
    return [f"train#{key}" for key in TRAINING_ALONE if key in section and section[key] != own.get(key, section[key])]


def _is_stock_network(definition: dict[str, Any]) -> bool:
    """True for a component of ``monai.networks.nets`` whose arguments are plain values."""
    import monai.networks.nets

    name = str(definition.get("_target_")).removeprefix("monai.networks.nets.")
    if not isinstance(getattr(monai.networks.nets, name, None), type):
        return False
    if target_fault(f"monai.networks.nets.{name}", predicts=True):
        return False
    arguments = {key: value for key, value in definition.items() if key != "_target_"}
    fetching = any(key.startswith("pretrained_") for key in arguments)
    return not fetching and _is_plain(arguments)


def _is_plain(value: Any) -> bool:
    """True for numbers, names and lists or maps of them: no expression, reference, macro or component."""
    if isinstance(value, str):
        return not value.startswith(("$", "@", "%"))
    if isinstance(value, dict):
        return all(not str(key).startswith("_") and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float))


def _content(parser: ConfigParser, key: str, config: Path) -> Any:
    try:
        return parser.get_parsed_content(key)
    except Exception as error:  # a config's own code can raise anything
        cause = error.__cause__ or error
        raise PipelineError(f"{config}: {key!r} cannot be built ({cause}). Restore it with `make bundles`.") from error


def _read_bytes(path: Path) -> tuple[bytes, str]:
    """A weights file and its SHA-256.

    Raises:
        PipelineError: unreadable, or not what the hash says that stands beside it, where one does.
    """
    try:
        data = content_of(path, MOST_WEIGHTS_BYTES)
    except OSError as error:
        raise PipelineError(
            f"{path}: no weights ({error.strerror}). Train the bundle first, or pass --weights FILE."
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    _refuse_damaged(path, digest)
    return data, digest


def _refuse_damaged(path: Path, digest: str) -> None:
    proof = proof_of(path)
    try:
        known = proof.read_text(errors="replace").split() if proof.is_file() else None
    except OSError as error:
        raise PipelineError(f"{proof}: cannot be read ({error.strerror}). Mend its permissions.") from error
    if known is not None and digest not in known:
        raise PipelineError(f"{path}: damaged, its SHA-256 {digest} is not that in {proof.name} beside it. Restore it.")


def named_weights(folder: Path) -> str | None:
    """SHA-256 of the weights that a bundle came with, as its metadata names it; None where it names none.

    Args:
        folder: of the bundle.
    """
    try:
        return str(json.loads((folder / METADATA).read_bytes())["weights"]["sha256"]).lower()
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _check_own_weights(folder: Path, weights_sha256: str) -> None:
    """The weights that a bundle came with must be those that its metadata names.

    Raises:
        PipelineError: they are others, and no training has left its record beside them.
    """
    expected = named_weights(folder)
    if expected not in (None, weights_sha256):
        raise PipelineError(
            f"{folder / WEIGHTS}: SHA-256 {weights_sha256} (its metadata: {expected}). Restore the file; your own "
            f"weights come with their {RECORD}, or are named by --weights."
        )


def _read_state(data: bytes, path: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """The state dict of a weights file; no code in it is run."""
    import io
    import zipfile

    import torch

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
    odd = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise PipelineError(
            f"{path}: NaN or Inf in {', '.join(odd[:3])}{more}. Take the weights of an earlier epoch, or train again."
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
