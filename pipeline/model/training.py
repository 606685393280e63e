"""What trainings are to run: bundle, experiments, recipe and folds -> plain ``monai.bundle run`` commands."""

from __future__ import annotations

import ast
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cohort.manifest import read_manifest
from pipeline.errors import PipelineError
from pipeline.model.training_config import as_recorded, check_overrides, merged
from pipeline.model.trust import clear_compiled, refuse_foreign, refuse_links
from pipeline.scripts.files import held
from pipeline.scripts.records import RECORD, load_record

ALL_FOLDS = "all"
PLACE_KEYS = (
    *("dataset_dir", "ckpt_dir", "output_dir", "device", "cache_dir", "cache_rate", "resume", "allow_different"),
)
"""Config keys that say where a training runs, not what it is."""
OPTION_KEYS = {"dataset_dir": "--manifest", "ckpt_dir": "--out", "output_dir": "--out"}
"""Config keys that options set, for each fold its own."""


@dataclass(frozen=True)
class TrainingRequest:
    """What is to be trained.

    Args:
        bundle: The bundle's folder, or its name below ``bundles/``.
        manifest: The manifest's folder.
        experiments: Config files, or names below ``experiments/``; later ones win.
        recipe: A config file, or a name below ``recipes/``.
        fold: The fold to validate on, ``all`` for every fold in turn; None trains without folds.
        resume: Go on with trainings that were interrupted, and pass over those that have ended.
        out: The folder of weights and curves; by default ``runs/NAME``.
        overrides: Key and value of the config in turn, each key with ``--`` before it.
        trust: Also train a bundle that is not this project's: its config can run any code.
        option_names: Names of the command's options, which a mistyped key may have meant.
    """

    bundle: str
    manifest: Path
    experiments: tuple[str, ...] = ()
    recipe: str | None = None
    fold: str | None = None
    resume: bool = False
    out: Path | None = None
    overrides: tuple[str, ...] = ()
    trust: bool = False
    option_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingRun:
    """One training.

    Args:
        folder: The folder of its weights and curves.
        command: The command that trains; empty where the training has ended already.
        note: What a person wants to know before it runs.
    """

    folder: Path
    command: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class TrainingPlan:
    """Trainings that have been checked and may run.

    Args:
        bundle: The bundle's folder.
        out: The folder of weights and curves; of folds the folder that holds ``fold_K``.
        runs: One training for each fold, or a single one.
    """

    bundle: Path
    out: Path
    runs: tuple[TrainingRun, ...]


def plan_training(request: TrainingRequest) -> TrainingPlan:
    """Check what is asked for and make the commands; nothing runs."""
    bundle = _named(request.bundle, "bundles", "")
    config = bundle / "configs" / "train.json"
    if not config.is_file():
        raise PipelineError(
            f"{bundle}: found no configs/train.json. Name a bundle's folder, such as bundles/basic_unet."
        )
    refuse_links(bundle)
    if not request.trust:
        refuse_foreign(bundle)
        clear_compiled(bundle)
    recipe = [_named(request.recipe, "recipes", ".yaml")] if request.recipe else []
    files = [*recipe, *(_named(name, "experiments", ".yaml") for name in request.experiments)]
    overrides = _pairs(request.overrides)
    wanted = _config(config, files, overrides, request.option_names)
    out = request.out or Path("runs") / "_".join([bundle.name, *(file.stem for file in files)])
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", _config_files([config, *files])]
    command += ["--dataset_dir", str(request.manifest)]
    runs = []
    for fold in _folds(request.manifest, request.fold):
        folder = out if request.fold is None else out / f"fold_{fold}"
        if (request.resume or request.fold == ALL_FOLDS) and (folder / RECORD).is_file():
            _refuse_other_training(folder / RECORD, {**wanted, "fold": fold}, request.manifest)
            runs.append(TrainingRun(folder, (), f"{folder}: trained already"))
            continue
        interrupted = _refuse_what_is_there(folder, resume=request.resume)
        options = ["--ckpt_dir", str(folder), "--output_dir", str(folder)]
        options += [] if fold is None else ["--fold", str(fold)]
        options += ["--resume", "True"] if interrupted else []
        note = f"{folder}: nothing to resume, starts afresh" if request.resume and not interrupted else ""
        runs.append(TrainingRun(folder, (*command, *options, *overrides), note))
    return TrainingPlan(bundle, out, tuple(runs))


def best_validation_dsc(plan: TrainingPlan) -> list[float]:
    """The best validation DSC of each training that has ended and recorded one."""
    records = [json.loads((run.folder / RECORD).read_bytes()) for run in plan.runs if (run.folder / RECORD).is_file()]
    return [record["best_validation_dsc"] for record in records if record.get("best_validation_dsc") is not None]


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


def _named(name: str, folder: str, suffix: str) -> Path:
    """A path that exists as given, or below ``folder`` of the working directory."""
    for path in (Path(name), Path(folder) / f"{name}{suffix}"):
        if path.exists() and (path.is_dir() or suffix):
            return path
    known = sorted(path.stem for path in Path(folder).glob(f"*{suffix}") if path.is_dir() != bool(suffix))
    known = [stem for stem in known if stem != "template"]
    raise PipelineError(
        f"{name}: neither a path nor below {folder}/ (found there: {', '.join(known) or 'nothing'}). "
        "Run from the repository's root, or give a path."
    )


def _pairs(rest: Sequence[str]) -> list[str]:
    """``--KEY VALUE`` and ``--KEY=VALUE`` as a flat list of keys and values."""
    if rest and not rest[0].startswith("--"):
        raise PipelineError(f"{rest[0]}: belongs to no --KEY (--resume and the like take no value). See --help.")
    flat = [part for text in rest for part in (text.split("=", 1) if text.startswith("--") else [text])]
    if len(flat) % 2 or not all(key.startswith("--") and len(key) > 2 for key in flat[::2]):
        raise PipelineError(f"{shlex.join(rest)}: expected pairs of --KEY VALUE. See --help.")
    return flat


def _config(
    config: Path, files: Sequence[Path], overrides: Sequence[str], option_names: Sequence[str]
) -> dict[str, Any]:
    """The config with files and command line on top."""
    content: dict[str, Any] = json.loads(config.read_bytes())
    for file in files:
        content = merged(content, file)
    given = dict(zip((key.removeprefix("--") for key in overrides[::2]), overrides[1::2], strict=True))
    for key, option in OPTION_KEYS.items():
        if key in given:
            raise PipelineError(f"--{key}: is set by {option} here. Pass {option} {given[key]}.")
    check_overrides(content, given, "command line", option_names)
    return as_recorded(content, {key: _value(text) for key, text in given.items()})


def _value(text: str) -> Any:
    """A value as MONAI's command line reads it: a Python literal, or else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _refuse_other_training(record: Path, wanted: Mapping[str, Any], manifest: Path) -> None:
    """A fold that is trained already must be of the same manifest and config, folders and hardware apart."""
    found = load_record(record)
    differing = [key for key, value in wanted.items() if key not in PLACE_KEYS and found["config"].get(key) != value]
    if found.get("manifest_sha256") != read_manifest(manifest).sha256:
        differing.append("the manifest")
    if differing:
        raise PipelineError(
            f"{record.parent}: holds another training (it differs in {', '.join(differing)}). Choose another --out."
        )


def _config_files(files: Sequence[Path]) -> str:
    """MONAI's form for one config file or a list of them."""
    names = [file.as_posix() for file in files]
    return names[0] if len(names) == 1 else str(names).replace(" ", "")


def _folds(manifest: Path, fold: str | None) -> list[int | None]:
    """The folds to train, ``[None]`` for a training without folds."""
    if fold is None:
        return [None]
    known = read_manifest(manifest).folds
    if fold == ALL_FOLDS and known:
        return list(known)
    if not fold.isdigit() or int(fold) not in known:
        found = ", ".join(map(str, known)) or "none"
        raise PipelineError(
            f"--fold {fold}: not in {manifest} (found: {found}). Build the manifest with --folds K, or pass another."
        )
    return [int(fold)]
