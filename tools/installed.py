"""Build the wheel, install it into a fresh virtual environment and use it from an empty folder; `make installed`.

No file of the checkout is on a path there. The check segments a FLAIR volume and expects a mask on its grid. `make
release` adds ``--out``, which keeps the wheel and writes each bundle's zip beside it. Each zip must give the same mask
where this package is not installed.
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
"""The lowest DSC that the phantom's mask may have. The shipped weights reach 0.9."""


def build_wheel(folder: Path) -> Path:
    """Path of the project's wheel, which is built into a folder.

    Args:
        folder: The folder for the wheel.
    """
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # files of an earlier build would get into the wheel
    command = ["wheel", "--no-deps", "--no-build-isolation", str(ROOT), "--wheel-dir", str(folder)]
    run([sys.executable, "-m", "pip", *command, "--quiet"], ROOT)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    return next(folder.glob("*.whl"))


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel into a fresh virtual environment, with the versions of ``constraints.txt``.

    As in ``make env``, a torch on this machine is preferred to the one of the package index.

    Args:
        wheel: The wheel.
        folder: The folder of the new environment.

    Returns:
        The folder of the environment's programs.
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
    """Paths of a phantom's FLAIR, (H, W, D), and of its label, as NIfTI files in a folder."""
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
    """The output of a command that runs in a folder, without the checkout on any path.

    Raises:
        PipelineError: The exit status is not 0.
    """
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=clean, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise PipelineError(f"{' '.join(command)}: exit status {done.returncode} (expected 0), in {folder}.")
    return done.stdout


def check(binaries: Path, folder: Path) -> float:
    """DSC of the mask that the installed command writes in an empty folder.

    Args:
        binaries: The folder of the environment's programs.
        folder: A folder for inputs and results.

    Raises:
        PipelineError: The mask is missing, on another grid or poor, or the wheel does not name the licence.
    """
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


def check_zips(binaries: Path, folder: Path, out: Path) -> list[str]:
    """Check that each bundle's zip gives the same mask without this package, which is uninstalled.

    Call it after ``check``, whose FLAIR it segments again.

    Args:
        binaries: The folder of the environment's programs.
        folder: The folder that ``check`` used.
        out: The folder to which the zips are written.

    Returns:
        The names of the bundles.

    Raises:
        PipelineError: A zip gives another mask.
    """
    import numpy as np

    from pipeline.imaging.nifti import load_label

    names = json.loads((ROOT / "pipeline" / "model" / "bundles.json").read_text())
    for name in names:
        run([str(binaries / "lgg-flair"), "pack", name, "--out", str(out.resolve()), "--quiet"], folder)
    expected = folder / "empty" / "each"
    flair = folder / "flair.nii.gz"
    for name in names:
        run([str(binaries / "lgg-flair"), "predict", str(flair), "--bundle", name, "-o", str(expected / name)], folder)
    run([str(binaries / "python"), "-m", "pip", "uninstall", "--quiet", "--yes", "lgg-flair-pipeline"], folder)
    (folder / "images").mkdir()
    shutil.copy(flair, folder / "images" / "flair_image.nii.gz")
    for name in names:
        shutil.unpack_archive(next(out.glob(f"{name}_v*.zip")), folder / "unpacked")
        config = folder / "unpacked" / name / "configs" / "inference.json"
        places = ["--dataset_dir", str(folder / "images"), "--output_dir", str(folder / "masks" / name)]
        run([str(binaries / "python"), "-m", "monai.bundle", "run", "--config_file", str(config), *places], folder)
        found = load_label(folder / "masks" / name / "flair_image_mask.nii.gz")
        if not np.array_equal(found, load_label(expected / name / "flair_mask.nii.gz")):
            raise PipelineError(f"{config}: another mask than that of predict.")
    return list(names)


def main(argv: Sequence[str] | None = None) -> int:
    """Build, install and predict, and print a line with the result.

    Args:
        argv: The arguments; None for those of the process.

    Raises:
        PipelineError: A step fails, or a mask is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.installed", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="keep the wheel and the bundles' zips in this folder")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        binaries = install(wheel, folder / "environment")
        dsc = check(binaries, folder)
        size = wheel.stat().st_size / 1e6
        print(f"{wheel.name} ({size:.1f} MB): segments a phantom's FLAIR from an empty folder, DSC {dsc:.3f}")
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            names = check_zips(binaries, folder, args.out)
            shutil.copy(wheel, args.out)
            print(f"{', '.join(names)}: the zips give the same masks without this package")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
