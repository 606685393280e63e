"""The command ``lgg-flair train``: print and run the plain ``monai.bundle run`` command, once or for each fold."""

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

from pipeline.command_line import PROGRAM, CommandParser, print_json, run_cli, say
from pipeline.files import OWN

if TYPE_CHECKING:
    from pipeline.model.training import TrainingPlan


def arguments() -> argparse.ArgumentParser:
    """The parser of the command's arguments, named as in ``plan_training``; it leaves other ``--KEY VALUE`` pairs."""
    parser = CommandParser(
        "train",
        usage="%(prog)s [options] [--KEY VALUE ...]",
        description="Train the network of a bundle. Any other --KEY VALUE overrides its config. Research only.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--bundle", default="basic_unet", help="name of a bundle, or its folder (default: %(default)s)")
    add(
        "--experiment",
        action="append",
        default=[],
        help="name of an experiment, or its YAML file; repeat it for several",
    )
    add("--recipe", help="name of a recipe, or its YAML file")
    add("--manifest", type=Path, default=Path("data_manifest"), help="folder of the manifest (default: %(default)s)")
    add("--fold", help="number of the fold to validate on, while the others train; all: every fold in turn")
    add("--init", help="weights to start from: name of a bundle, folder of a bundle or training, or a weights file")
    add("--resume", action="store_true", help="continue an interrupted training")
    trust_help = "train a --bundle that is not this project's own; its configs can run any code"
    add("--trust", action="store_true", help=trust_help)
    add("--out", type=Path, help="folder for weights and curves (default: runs/NAME)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print and run the training command, or one for each fold.

    Args:
        argv: The arguments without the program's name; None for those of the process.

    Returns:
        0, or the exit status of the first training that failed.

    Raises:
        PipelineError: An option, a setting or a file is wrong; the message says what to do.
    """
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
    """The last line: the best validation DSC, and the commands that score the last weights and show the scores."""
    from pipeline.model.training import ALL_FOLDS

    what = ["--weights", str(plan.out / "model.pt")] if args.fold is None else ["--folds", str(plan.out)]
    what += [] if args.fold in (None, ALL_FOLDS) else ["--fold", args.fold]
    what += ["--trust"] if args.trust else []
    scores = str(plan.out / "scores")
    bundle = plan.bundle.name if plan.bundle.parent == OWN / "bundles" else str(plan.bundle)
    evaluate = [PROGRAM, "evaluate", "--manifest", str(args.manifest), "--bundle", bundle]
    commands = [[*evaluate, *what, "--out", scores, "--figures"], [PROGRAM, "report", scores]]
    best = ", ".join(f"{dsc:.4f}" for dsc in plan.best_validation_dsc())
    start = f"best validation DSC {best}; " if best else ""
    return f"{start}next: {' && '.join(map(shlex.join, commands))}"


def _end_with_parent() -> None:
    """Ask Linux to end the training's process if the process that started it is killed."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _run(command: Sequence[str], *, is_own: bool, for_scripts: bool) -> int:
    """Print a training command as it could be typed, run it, and say how to resume it after Ctrl-C.

    Args:
        command: The program and its arguments.
        is_own: The bundle is this project's own, as its hashes show. MONAI's warning that a config can run any code
            is then left out.
        for_scripts: Send the output of the training to standard error. With ``--quiet`` it is not shown at all.

    Returns:
        The exit status: that of the training, 130 after Ctrl-C, 128 and the number of the signal that killed it.
    """
    # A list of config files holds single quotes, so double quotes around it are easier to read than those of shlex.
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
        print("\ninterrupted; run the same command with --resume to continue", file=sys.stderr)
        return 130
    if status >= 0:
        return status
    why = "perhaps memory ran out; " if -status == 9 else ""
    name = signal.Signals(-status).name
    print(
        f"\nerror: the training was killed ({name}): {why}run the same command with --resume to continue",
        file=sys.stderr,
    )
    return 128 - status


if __name__ == "__main__":
    sys.exit(run_cli(main))
