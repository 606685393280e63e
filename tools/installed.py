"""The wheel alone: built, installed into a fresh virtual environment, used from an empty folder; `make installed`.

Nothing of the checkout is on any path there. A FLAIR volume goes in; a mask on its grid must come out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import run_cli
from pipeline.errors import PipelineError

ROOT = Path(__file__).parents[1]
LICENCE = "CC-BY-NC-SA-4.0"
MIN_DSC = 0.8
"""Of the phantom: the shipped weights reach 0.9."""


def build_wheel(folder: Path) -> Path:
    """The project's wheel, built into a folder by the build backend that runs this program."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # of an earlier build: its files would get into the wheel
    command = ["wheel", "--no-deps", "--no-build-isolation", str(ROOT), "--wheel-dir", str(folder)]
    run([sys.executable, "-m", "pip", *command, "--quiet"], ROOT)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    return next(folder.glob("*.whl"))


def install(wheel: Path, folder: Path) -> Path:
    """A fresh virtual environment with the wheel and, in the versions of ``constraints.txt``, what it needs.

    As in ``make env``, a torch that lies on this machine is taken before the index's.
    """
    venv.create(folder, with_pip=True)
    binaries = folder / ("Scripts" if os.name == "nt" else "bin")
    pins = re.sub(r"( \\)?\n    --hash=.*", "", (ROOT / "constraints.txt").read_text())
    (folder / "constraints.txt").write_text(pins)
    pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    torch = next(line for line in pins.splitlines() if line.startswith("torch=="))
    subprocess.run([*pip, "--no-index", "--no-deps", torch], stderr=subprocess.DEVNULL, check=False)
    run([*pip, "--constraint", str(folder / "constraints.txt"), str(wheel)], folder)
    return binaries


def flair_and_truth(folder: Path) -> tuple[Path, Path]:
    """A phantom's FLAIR, alone, (H, W, D), and its label, as NIfTI files."""
    import nibabel as nib
    import numpy as np

    from pipeline.cohort.building import build_manifest
    from pipeline.cohort.manifest import read_manifest
    from pipeline.cohort.phantoms import make_phantoms
    from pipeline.scripts.volumes import open_nifti

    slices = make_phantoms(folder / "phantoms", patients=1, size=128, slices=12)
    build_manifest(slices, folder / "manifest", split="none")
    volume = read_manifest(folder / "manifest").sections["test"][0]
    image = open_nifti(volume.image)
    nib.Nifti1Image(np.asarray(image.dataobj)[..., 1], image.affine).to_filename(folder / "flair.nii.gz")
    return folder / "flair.nii.gz", volume.label


def run(command: Sequence[str], folder: Path) -> str:
    """What a command prints when run in a folder, the checkout on no path."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=clean, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise PipelineError(f"{' '.join(command)}: exit status {done.returncode} (expected 0), in {folder}.")
    return done.stdout


def check(binaries: Path, folder: Path) -> float:
    """DSC of the mask that the installed command writes, in an empty folder."""
    import numpy as np

    from pipeline.imaging.nifti import load_label
    from pipeline.scoring.metrics import score_volume
    from pipeline.scripts.volumes import open_nifti

    flair, truth = flair_and_truth(folder)
    (folder / "empty").mkdir()
    program = str(binaries / "lgg-flair")
    found = json.loads(run([program, "predict", str(flair), "-o", "out", "--json"], folder / "empty"))
    if len(found["bundles"]) != 3 or [row["volume"] for row in found["volumes"]] != ["flair"]:
        raise PipelineError(f"{program}: {len(found['bundles'])} bundles, {found['volumes']} (expected 3, and flair).")
    mask = folder / "empty" / "out" / "flair_mask.nii.gz"
    if not np.array_equal(open_nifti(mask).affine, open_nifti(flair).affine):
        raise PipelineError(f"{mask}: on another grid than {flair}.")
    dsc = score_volume("flair", load_label(mask), load_label(truth)).dsc or 0.0
    if dsc < MIN_DSC:
        raise PipelineError(f"{mask}: DSC {dsc:.3f} (expected at least {MIN_DSC}).")
    ask = "from importlib.metadata import metadata; print(metadata('lgg-flair-pipeline')['License-Expression'])"
    if LICENCE not in run([str(binaries / "python"), "-c", ask], folder):
        raise PipelineError(f"the wheel's metadata: no {LICENCE}, the weights' licence.")
    return dsc


def main(argv: Sequence[str] | None = None) -> int:
    """Build, install, predict; print one line."""
    argparse.ArgumentParser(prog="python -m tools.installed", description=__doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        dsc = check(install(wheel, folder / "environment"), folder)
        size = wheel.stat().st_size / 1e6
        print(f"{wheel.name} ({size:.1f} MB): segments a phantom's FLAIR from an empty folder, DSC {dsc:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
