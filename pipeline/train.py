"""Command line: bundle, experiment, recipe, fold -> the plain ``monai.bundle run`` command, printed and run."""

from __future__ import annotations

import argparse
import ast
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.datalist import read_manifest
from pipeline.errors import PipelineError, run_cli
from pipeline.overrides import as_recorded, check_overrides, merged
from pipeline.scripts.files import held
from pipeline.scripts.records import RECORD, load_record

ALL_FOLDS = "all"
PLACE = ("dataset_dir", "ckpt_dir", "output_dir", "device", "cache_dir", "cache_rate", "resume", "allow_different")
"""Config keys that say where a training runs, not what it is."""
OWN = {"dataset_dir": "--manifest", "ckpt_dir": "--out", "output_dir": "--out"}
"""Config keys that options of this command set, for each fold its own."""


def arguments() -> argparse.ArgumentParser:
    """The command line's arguments; whatever else is given overrides the config."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.train",
        usage="%(prog)s [options] [--KEY VALUE ...]",
        description="Train a bundle. Any other --KEY VALUE overrides the bundle's config. Research only.",
        allow_abbrev=False,
    )
    parser.add_argument("--bundle", default="basic_unet", help="folder, or name below bundles/ (default: basic_unet)")
    parser.add_argument(
        "--experiment", action="append", default=[], help="file, or name below experiments/; repeatable"
    )
    parser.add_argument("--recipe", help="file, or name below recipes/")
    parser.add_argument("--manifest", type=Path, default=Path("data_manifest"), help="folder (default: data_manifest)")
    parser.add_argument("--fold", help="validate on this fold, train on the others; all: every fold in turn")
    parser.add_argument("--resume", action="store_true", help="go on where a training was interrupted")
    parser.add_argument("--out", type=Path, help="folder for weights and curves (default: runs/NAME)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print and run the training's command, or one a fold.

    Raises:
        PipelineError: an unknown bundle, file or key, a fold that the manifest does not have, or another training in
            the folder.
    """
    args, rest = arguments().parse_known_args(argv)
    bundle = _named(args.bundle, "bundles", "")
    config = bundle / "configs" / "train.json"
    if not config.is_file():
        raise PipelineError(
            f"{bundle}: found no configs/train.json. Name a bundle's folder, such as bundles/basic_unet."
        )
    files = [_named(name, "experiments", ".yaml") for name in args.experiment]
    files = [*([_named(args.recipe, "recipes", ".yaml")] if args.recipe else []), *files]
    overrides = _pairs(rest)
    wanted = _config(config, files, overrides)
    out = args.out or Path("runs") / "_".join([bundle.name, *(file.stem for file in files)])
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", _config_files([config, *files])]
    command += ["--dataset_dir", str(args.manifest)]
    folds = _folds(args.manifest, args.fold)
    for fold in folds:
        folder = out if args.fold is None else out / f"fold_{fold}"
        options = ["--ckpt_dir", str(folder), "--output_dir", str(folder)]
        options += [] if fold is None else ["--fold", str(fold)]
        if (args.resume or args.fold == ALL_FOLDS) and (folder / RECORD).is_file():
            _refuse_other_training(folder / RECORD, {**wanted, "fold": fold}, args.manifest)
            print(f"{folder}: trained already")
            continue
        if (folder / RECORD).is_file():
            raise PipelineError(
                f"{folder}: holds a finished training (this one would replace it). Choose another --out, or remove it."
            )
        if folder.is_dir():
            with held(folder):  # refused where another training runs
                pass
        interrupted = any(folder.glob("checkpoint_*.pt"))
        if interrupted and not args.resume:
            raise PipelineError(
                f"{folder}: holds an interrupted training. Pass --resume to go on with it, or choose another --out."
            )
        if args.resume and not interrupted:
            print(f"{folder}: nothing to resume, starts afresh")
        options += ["--resume", "True"] if interrupted else []
        status = _run([*command, *options, *overrides])
        if status:
            return status
    print(_next(args, bundle, out, folds))
    return 0


def _next(args: argparse.Namespace, bundle: Path, out: Path, folds: Sequence[int | None]) -> str:
    """The best validation DSC, and the commands that score the last weights and show them."""
    records = [(out if fold is None else out / f"fold_{fold}") / RECORD for fold in folds]
    best = [json.loads(path.read_bytes()).get("best_validation_dsc") for path in records if path.is_file()]
    said = ", ".join(f"{dsc:.4f}" for dsc in best if dsc is not None)
    what = ["--weights", str(out / "model.pt")] if args.fold is None else ["--folds", str(out)]
    what += [] if args.fold in (None, ALL_FOLDS) else ["--fold", args.fold]
    scores = str(out / "scores")
    evaluate = ["python", "-m", "pipeline.evaluate", "--manifest", str(args.manifest), "--bundle", str(bundle)]
    commands = [[*evaluate, *what, "--out", scores, "--figures"], ["python", "-m", "pipeline.report", scores]]
    start = f"best validation DSC {said}; " if said else ""
    return f"{start}next: {' && '.join(map(shlex.join, commands))}"


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
    """``--KEY VALUE`` and ``--KEY=VALUE`` as a flat list of keys and values.

    Raises:
        PipelineError: a value without a key, or a key without a value.
    """
    if rest and not rest[0].startswith("--"):
        raise PipelineError(f"{rest[0]}: belongs to no --KEY (--resume and the like take no value). See --help.")
    flat = [part for text in rest for part in (text.split("=", 1) if text.startswith("--") else [text])]
    if len(flat) % 2 or not all(key.startswith("--") and len(key) > 2 for key in flat[::2]):
        raise PipelineError(f"{shlex.join(rest)}: expected pairs of --KEY VALUE. See --help.")
    return flat


def _config(config: Path, files: Sequence[Path], overrides: Sequence[str]) -> dict[str, Any]:
    """The config with files and command line on top.

    Raises:
        PipelineError: a key that the bundle's config does not have, or one that an option of this command sets.
    """
    content: dict[str, Any] = json.loads(config.read_bytes())
    for file in files:
        content = merged(content, file)
    given = dict(zip((key.removeprefix("--") for key in overrides[::2]), overrides[1::2], strict=True))
    for key, option in OWN.items():
        if key in given:
            raise PipelineError(f"--{key}: is set by {option} here. Pass {option} {given[key]}.")
    options = [text.removeprefix("--") for action in arguments()._actions for text in action.option_strings]
    check_overrides(content, given, "command line", options)
    return as_recorded(content, {key: _value(text) for key, text in given.items()})


def _value(text: str) -> Any:
    """A value as MONAI's command line reads it: a Python literal, or else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _refuse_other_training(record: Path, wanted: dict[str, Any], manifest: Path) -> None:
    """A fold that is trained already must be of the same manifest and config, folders and hardware apart.

    Raises:
        PipelineError: it is not, or its record is unreadable.
    """
    found = load_record(record)
    differing = [key for key, value in wanted.items() if key not in PLACE and found["config"].get(key) != value]
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
    """The folds to train, ``[None]`` for a training without folds.

    Raises:
        PipelineError: no such fold in the manifest.
    """
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


def _end_with_parent() -> None:
    """In the training's process, before it begins: end when the one that started it is killed; on Linux alone."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _run(command: Sequence[str]) -> int:
    """Print a command as it could be typed, run it, and say how to go on after Ctrl-C."""
    # A list of config files holds single quotes: double quotes around it read better than what shlex makes of it.
    parts = [
        f'"{part}"' if "'" in part and not set(part) & set('"$`\\!') else shlex.quote(part) for part in command[1:]
    ]
    print("python", *parts, flush=True)
    try:
        status = subprocess.run(command, check=False, preexec_fn=_end_with_parent).returncode  # noqa: S603
    except KeyboardInterrupt:
        print("\ninterrupted; the same command with --resume goes on", file=sys.stderr)
        return 130
    if status < 0:
        why = "perhaps memory ran out; " if -status == signal.SIGKILL else ""
        name = signal.Signals(-status).name
        print(
            f"\nerror: the training was killed ({name}): {why}the same command with --resume goes on", file=sys.stderr
        )
        return 128 - status
    return status


if __name__ == "__main__":
    sys.exit(run_cli(main))
