"""The command that trains: it prints and runs the plain ``monai.bundle run`` command, or one for each fold."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import CommandParser, print_json, program, run_cli, say
from pipeline.files import OWN

if TYPE_CHECKING:
    from pipeline.model.training import TrainingPlan


def arguments() -> argparse.ArgumentParser:
    """The command line's arguments, as ``plan_training`` names them; whatever else is given overrides the config."""
    parser = CommandParser(
        "train",
        usage="%(prog)s [options] [--KEY VALUE ...]",
        description="Train a bundle. Any other --KEY VALUE overrides the bundle's config. Research only.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--bundle", default="basic_unet", help="name or folder (default: basic_unet)")
    add("--experiment", action="append", default=[], help="file, or name below experiments/; repeatable")
    add("--recipe", help="file, or name below recipes/")
    add("--manifest", type=Path, default=Path("data_manifest"), help="folder (default: data_manifest)")
    add("--fold", help="validate on this fold, train on the others; all: every fold in turn")
    add("--init", help="weights to start from: a bundle, by name or folder, or a weights file (default: none)")
    add("--resume", action="store_true", help="go on where a training was interrupted")
    trust_help = "train a --bundle that is not this project's own: its configs can run any code"
    add("--trust", action="store_true", help=trust_help)
    add("--out", type=Path, help="folder for weights and curves (default: runs/NAME)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print and run the training's command, or one for each fold."""
    parser = arguments()
    args, overrides = parser.parse_known_args(argv)
    options = [text.removeprefix("--") for text in parser.format_help().split() if text.startswith("--")]
    for_scripts = vars(args).pop("json")
    from pipeline.model.training import plan_training

    plan = plan_training(**vars(args), overrides=overrides, option_names=options)
    for command in plan.commands.values():
        status = _run(command, is_own=not args.trust, for_scripts=for_scripts) if command else 0
        if status:
            return status
    say(_next(args, plan))
    if for_scripts:
        print_json({"out": str(plan.out), "best_validation_dsc": plan.best_validation_dsc()})
    return 0


def _next(args: argparse.Namespace, plan: TrainingPlan) -> str:
    """The best validation DSC, and the commands that score the last weights and show them."""
    from pipeline.model.training import ALL_FOLDS

    what = ["--weights", str(plan.out / "model.pt")] if args.fold is None else ["--folds", str(plan.out)]
    what += [] if args.fold in (None, ALL_FOLDS) else ["--fold", args.fold]
    what += ["--trust"] if args.trust else []
    scores = str(plan.out / "scores")
    bundle = plan.bundle.name if plan.bundle.parent == OWN / "bundles" else str(plan.bundle)
    evaluate = [*program("evaluate").split(), "--manifest", str(args.manifest), "--bundle", bundle]
    commands = [[*evaluate, *what, "--out", scores, "--figures"], [*program("report").split(), scores]]
    best = ", ".join(f"{dsc:.4f}" for dsc in plan.best_validation_dsc())
    start = f"best validation DSC {best}; " if best else ""
    return f"{start}next: {' && '.join(map(shlex.join, commands))}"


def _end_with_parent() -> None:
    """In the training's process, before it begins: end when the one that started it is killed; on Linux alone."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _run(command: Sequence[str], *, is_own: bool, for_scripts: bool) -> int:
    """Print a command as it could be typed, run it, and say how to go on after Ctrl-C.

    What the training prints goes to standard error for scripts, and nowhere with ``--quiet``. Of a bundle of this
    project, known by its hashes, MONAI's warning that a config can run any code is left out.
    """
    # A list of config files holds single quotes: double quotes around it read better than what shlex makes of it.
    parts = [
        f'"{part}"' if "'" in part and not set(part) & set('"$`\\!') else shlex.quote(part) for part in command[1:]
    ]
    say(" ".join(["python", *parts]))
    sys.stdout.flush()
    encoding = os.environ.get("PYTHONIOENCODING", "").partition(":")[0] + ":backslashreplace"  # MONAI logs folder names
    printed = sys.stderr if for_scripts else None
    ignored = [os.environ.get("PYTHONWARNINGS", ""), "ignore:parsing config_file" if is_own else ""]
    try:
        status = subprocess.run(  # noqa: S603
            command,
            check=False,
            env={**os.environ, "PYTHONWARNINGS": ",".join(filter(None, ignored)), "PYTHONIOENCODING": encoding},
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            stdout=printed if logging.getLogger("pipeline").isEnabledFor(logging.INFO) else subprocess.DEVNULL,
        ).returncode
    except KeyboardInterrupt:
        print("\ninterrupted; the same command with --resume goes on", file=sys.stderr)
        return 130
    if status >= 0:
        return status
    why = "perhaps memory ran out; " if -status == 9 else ""
    name = signal.Signals(-status).name
    print(f"\nerror: the training was killed ({name}): {why}the same command with --resume goes on", file=sys.stderr)
    return 128 - status


if __name__ == "__main__":
    sys.exit(run_cli(main))
