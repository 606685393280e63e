"""What trainings are to run: bundle, experiments, recipe and folds -> plain ``monai.bundle run`` commands."""

from __future__ import annotations

import json
import logging
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
from pipeline.scripts.records import PLACE_KEYS, RECORD, load_record

logger = logging.getLogger(__name__)

ALL_FOLDS = "all"
OPTION_KEYS = {"dataset_dir": "--manifest", "ckpt_dir": "--out", "output_dir": "--out"}
"""Config keys that options set, for each fold its own."""


@dataclass(frozen=True)
class TrainingPlan:
    """Trainings that have been checked and may run; ``out`` is the folder of the weights or, of folds, of ``fold_K``.

    ``commands`` is the folder of each training -> its command, which is empty where the training has ended already.
    """

    bundle: Path
    out: Path
    commands: dict[Path, list[str]]

    def best_validation_dsc(self) -> list[float]:
        """The best validation DSC of each training that has ended and recorded one."""
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
    resume: bool = False,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    trust: bool = False,
    option_names: Sequence[str] = (),
) -> TrainingPlan:
    """Check what is asked for and make the command of each training; nothing runs.

    ``bundle``, each ``experiment`` and ``recipe`` are paths, or names below ``bundles/``, ``experiments/`` and
    ``recipes/``. ``fold`` is a number, ``all``, or None for a training on all but the validation section.
    ``overrides`` are keys of the config, each with ``--`` before it, and their values. A mistyped key may have meant
    one of ``option_names``.
    """
    bundle = named_path(bundle, "bundles")
    config = config_of(bundle, "configs/train.json")
    refuse_links(bundle)
    if not trust:
        refuse_foreign(bundle)
        clear_compiled(bundle)
    files = [named_path(recipe, "recipes", ".yaml")] if recipe else []
    files += [named_path(name, "experiments", ".yaml") for name in experiment]
    given = _pairs(overrides)
    # MONAI's command line reads values by the same parser.
    values = {key: DefaultParseValue(text) for key, text in given.items()}
    wanted = config_with(config, files, values, option_names)
    out = out or Path("runs") / "_".join([bundle.name, *(file.stem for file in files)])
    names = [file.as_posix() for file in (config, *files)]
    config_file = f"[{','.join(map(repr, names))}]" if files else names[0]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config_file]
    commands: dict[Path, list[str]] = {}
    for number in [None] if fold is None else _folds(manifest, fold):
        folder = out if number is None else out / f"fold_{number}"
        if (resume or fold == ALL_FOLDS) and (folder / RECORD).is_file():
            _refuse_other_training(folder / RECORD, {**wanted, "fold": number}, manifest)
            logger.info(f"{folder}: trained already")
            commands[folder] = []
            continue
        interrupted = _refuse_what_is_there(folder, resume=resume)
        if resume and not interrupted:
            logger.info(f"{folder}: nothing to resume, starts afresh")
        options: dict[str, object] = {"dataset_dir": manifest, "ckpt_dir": folder, "output_dir": folder}
        options |= {} if number is None else {"fold": number}
        options |= {"resume": True} if interrupted else {}
        pairs = (options | given).items()
        commands[folder] = [*command, *(text for key, value in pairs for text in (f"--{key}", str(value)))]
    return TrainingPlan(bundle, out, commands)


def _refuse_what_is_there(folder: Path, *, resume: bool) -> bool:
    """True where an interrupted training is there to be resumed."""
    if (folder / RECORD).is_file():
        raise PipelineError(
            f"{folder}: holds a finished training (this one would replace it). Choose another --out, or remove it."
        )
    if folder.is_dir():
        with held(folder):  # refused where another training runs
            pass
    interrupted = any(folder.glob("checkpoint_*.pt"))
    if interrupted and not resume:
        raise PipelineError(
            f"{folder}: holds an interrupted training. Pass --resume to go on with it, or choose another --out."
        )
    return interrupted


def _pairs(rest: Sequence[str]) -> dict[str, str]:
    """Key -> value of ``--KEY VALUE`` and ``--KEY=VALUE``."""
    if rest and not rest[0].startswith("--"):
        raise PipelineError(f"{rest[0]}: belongs to no --KEY (--resume and the like take no value). See --help.")
    flat = [part for text in rest for part in (text.split("=", 1) if text.startswith("--") else [text])]
    if len(flat) % 2 or not all(key.startswith("--") and len(key) > 2 for key in flat[::2]):
        raise PipelineError(f"{shlex.join(rest)}: expected pairs of --KEY VALUE. See --help.")
    given = {key.removeprefix("--"): value for key, value in zip(flat[::2], flat[1::2], strict=True)}
    for key, option in OPTION_KEYS.items():
        if key in given:
            raise PipelineError(f"--{key}: is set by {option} here. Pass {option} {given[key]}.")
    return given


def _refuse_other_training(record: Path, wanted: Mapping[str, Any], manifest: Path) -> None:
    """A fold that is trained already must be of the same manifest and config, places apart."""
    found = load_record(record)
    differing = [key for key, value in wanted.items() if key not in PLACE_KEYS and found["config"].get(key) != value]
    if found.get("manifest_sha256") != read_manifest(manifest).sha256:
        differing.append("the manifest")
    if differing:
        raise PipelineError(
            f"{record.parent}: holds another training (it differs in {', '.join(differing)}). Choose another --out."
        )


def _folds(manifest: Path, fold: str) -> list[int]:
    """The folds of the manifest that are meant."""
    known = read_manifest(manifest).folds
    meant = [number for number in known if fold in (ALL_FOLDS, str(number))]
    if not meant:
        found = ", ".join(map(str, known)) or "none"
        raise PipelineError(
            f"--fold {fold}: not in {manifest} (found: {found}). Build the manifest with --folds K, or pass another."
        )
    return meant
