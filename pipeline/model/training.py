"""Plan trainings: bundle, experiments, recipe and folds -> plain ``monai.bundle run`` commands."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue

from pipeline.cohort.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.files import named_path
from pipeline.model.bundle import config_of
from pipeline.model.training_config import config_with
from pipeline.model.trust import clear_compiled, refuse_foreign, refuse_links
from pipeline.scripts.files import held
from pipeline.scripts.manifest import MANIFEST_NAME
from pipeline.scripts.records import PLACE_KEYS, RECORD, as_text, load_record
from pipeline.scripts.weights import WEIGHTS, Weights, read_weights, weights_in

logger = logging.getLogger(__name__)

ALL_FOLDS = "all"
INIT_KEY = "init"
"""The config key of the weights that a training starts from. Their hash identifies them, not their path."""
OPTION_KEYS = {"dataset_dir": "--manifest", "ckpt_dir": "--out", "output_dir": "--out"}
"""Config keys that command-line options set, with a value for each fold."""
_PLAIN_PATH = re.compile(r"[\w./][\w./ -]*")
"""Paths that MONAI's command line and configs do not change, except names such as ``12`` and ``None``."""


@dataclass(frozen=True)
class TrainingPlan:
    """Trainings that have been checked and can run.

    Args:
        bundle: The bundle's folder.
        out: The folder for the weights or, with folds, for the folders ``fold_K``.
        commands: Folder of each training -> its command; empty if that training has finished already.
    """

    bundle: Path
    out: Path
    commands: dict[Path, list[str]]

    def best_validation_dsc(self) -> list[float]:
        """The best validation DSC of each finished training that recorded one."""
        records = [folder / RECORD for folder in self.commands]
        found = [json.loads(path.read_bytes()).get("best_validation_dsc") for path in records if path.is_file()]
        return [dsc for dsc in found if dsc is not None]


def plan_training(
    bundle: str | Path,
    manifest: Path,
    *,
    experiment: Sequence[str] = (),
    recipe: str | None = None,
    fold: str | None = None,
    init: str | Path | None = None,
    resume: bool = False,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    trust: bool = False,
    option_names: Sequence[str] = (),
) -> TrainingPlan:
    """The command of each training, after all arguments have been checked. Nothing runs yet.

    Args:
        bundle: A bundle's name, such as ``basic_unet``, or its folder.
        manifest: ``manifest.json`` or its folder.
        experiment: Config files that change the training: paths, or names in ``experiments/``.
        recipe: A config file that sets the budget of the training: a path, or a name in ``recipes/``.
        fold: The number of a fold, ``all``, or None for a training on all patients outside the validation section.
        init: The weights to start from: a bundle's name, the folder of a bundle or training, or a weights file.
        resume: Continue interrupted trainings.
        out: The folder for the weights; None for ``runs/``, with names of bundle, recipe and experiments.
        overrides: Config keys, each with ``--`` before it, and their values: ``["--seed", "3"]``.
        trust: Also train a bundle that is not this project's. Its config can run any code.
        option_names: Names of command-line options, to suggest for a mistyped key.

    Raises:
        PipelineError: An argument cannot be used, or ``out`` holds another training.
    """
    bundle = named_path(bundle, "bundles")
    config = config_of(bundle, "configs/train.json")
    refuse_links(bundle)
    if not trust:
        refuse_foreign(bundle)
        clear_compiled(bundle)
    files = [named_path(recipe, "recipes", ".yaml")] if recipe is not None else []
    files += [named_path(name, "experiments", ".yaml") for name in experiment]
    given = _pairs(overrides)
    # MONAI's command line reads values with the same parser.
    values = {key: DefaultParseValue(text) for key, text in given.items()}
    wanted = config_with(config, files, values, option_names)
    if init is not None and INIT_KEY not in wanted:
        raise PipelineError(f"{config}: has no key {INIT_KEY}, so --init has no effect. Leave --init out.")
    init = wanted.get(INIT_KEY) if init is None else init
    start = None if init is None else _start(init)
    out = out or Path("runs") / "_".join([bundle.resolve().name, *(file.stem for file in files)])
    names = [file.as_posix() for file in (config, *files)]
    config_file = names[0] if not files and _is_plain(names[0]) else f"[{','.join(map(repr, names))}]"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config_file]
    dataset = manifest.parent if manifest.name == MANIFEST_NAME else manifest
    commands: dict[Path, list[str]] = {}
    for number in [None] if fold is None else _folds(manifest, fold):
        folder = out if number is None else out / f"fold_{number}"
        if (resume or fold == ALL_FOLDS) and (folder / RECORD).is_file():
            _refuse_other_training(folder / RECORD, {**wanted, "fold": number}, manifest, start)
            logger.info(f"{folder}: already trained")
            commands[folder] = []
            continue
        interrupted = _refuse_what_is_there(folder, resume=resume)
        if resume and not interrupted:
            logger.info(f"{folder}: nothing to resume, so the training starts from the beginning")
        options: dict[str, object] = {"dataset_dir": as_typed(dataset)}
        options |= dict.fromkeys(("ckpt_dir", "output_dir"), as_typed(folder))
        options |= {} if start is None else {INIT_KEY: as_typed(start.path)}
        options |= {} if number is None else {"fold": number}
        options |= {"resume": True} if interrupted else {}
        pairs = (options | given).items()
        commands[folder] = [*command, *(text for key, value in pairs for text in (f"--{key}", str(value)))]
    return TrainingPlan(bundle, out, commands)


def as_typed(path: Path) -> str:
    """A path as an argument of ``monai.bundle run`` that MONAI reads as exactly this path.

    MONAI's command line reads ``a,b`` and ``[a]`` as lists, and ``12`` as a number. In its configs ``$``, ``@`` and
    ``#`` have a meaning. Such a path is written as an expression whose value is the path.
    """
    if _is_plain(str(path)):
        return str(path)
    quoted = ascii(str(path))
    for sign in "#@%":
        quoted = quoted.replace(sign, f"\\x{ord(sign):02x}")
    return f"${quoted}"


def _is_plain(text: str) -> bool:
    return bool(_PLAIN_PATH.fullmatch(text)) and DefaultParseValue(text) == text


def _start(init: str | Path) -> Weights:
    """The weights that a training starts from."""
    place = Path(init)
    file = place if place.is_file() else weights_in(named_path(init, "bundles"))
    return read_weights(file, file.absolute().parent.parent, "--init")


def _refuse_what_is_there(folder: Path, *, resume: bool) -> bool:
    """Refuse a folder that holds another training. True if it holds an interrupted one that can be resumed."""
    if (folder / RECORD).is_file():
        raise PipelineError(f"{folder}: holds a finished training (expected none). Choose another --out, or remove it.")
    if folder.is_dir():
        with held(folder):  # raises if another training runs there
            pass
    interrupted = any(folder.glob("checkpoint_*.pt"))
    if interrupted and not resume:
        raise PipelineError(
            f"{folder}: holds an interrupted training. Pass --resume to continue it, or choose another --out."
        )
    weights = folder / Path(WEIGHTS).name
    if not interrupted and weights.is_file():
        raise PipelineError(
            f"{weights}: weights without the record of a training (expected none). Choose another --out."
        )
    return interrupted


def _pairs(rest: Sequence[str]) -> dict[str, str]:
    """Key -> value of ``--KEY VALUE`` and ``--KEY=VALUE``."""
    if rest and not rest[0].startswith("--"):
        raise PipelineError(f"{rest[0]}: belongs to no --KEY (options such as --resume take no value). See --help.")
    flat = [part for text in rest for part in (text.split("=", 1) if text.startswith("--") else [text])]
    if len(flat) % 2 or not all(key.startswith("--") and len(key) > 2 for key in flat[::2]):
        raise PipelineError(f"{shlex.join(rest)}: expected pairs of --KEY VALUE. See --help.")
    given = {key.removeprefix("--"): value for key, value in zip(flat[::2], flat[1::2], strict=True)}
    for key, option in OPTION_KEYS.items():
        if key in given:
            raise PipelineError(f"--{key}: set by {option} (expected no --{key}). Pass {option} {given[key]}.")
    return given


def _refuse_other_training(record: Path, wanted: Mapping[str, Any], manifest: Path, start: Weights | None) -> None:
    """Refuse a trained fold of another manifest or config. Settings that only name places may differ."""
    found = load_record(record)
    ignored = {*PLACE_KEYS, INIT_KEY}
    now = json.loads(as_text(wanted))  # as in the record: no tuples, no absolute paths
    differing = [key for key, value in now.items() if key not in ignored and found["config"].get(key) != value]
    if (found.get(INIT_KEY) or {}).get("sha256") != (start and start.sha256):
        differing.append("the weights of --init")
    if found.get("manifest_sha256") != read_manifest(manifest).sha256:
        differing.append("the manifest")
    if differing:
        raise PipelineError(
            f"{record.parent}: holds another training (it differs in {', '.join(differing)}). Choose another --out."
        )


def _folds(manifest: Path, fold: str) -> list[int]:
    """The fold numbers that ``fold`` selects: one, or all of the manifest."""
    known = read_manifest(manifest).folds
    meant = [number for number in known if fold in (ALL_FOLDS, str(number))]
    if not meant:
        found = ", ".join(map(str, known)) or "none"
        raise PipelineError(
            f"--fold {fold}: not in {manifest} (found: {found}). Build the manifest with --folds K, or pass another."
        )
    return meant
