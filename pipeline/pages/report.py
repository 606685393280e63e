"""Evaluations side by side -> one HTML page with tables, charts and a viewer, complete in itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline import __version__
from pipeline.errors import PipelineError
from pipeline.files import path_list
from pipeline.imaging.nifti import load_image, load_label, load_map, shown_in_grey
from pipeline.pages import MAX_VIEWERS, REPORT_NAME, charts
from pipeline.pages.overlays import ORANGE, SKY_BLUE, contour_frame
from pipeline.pages.viewer import data_address, head_box, patient_view
from pipeline.scoring.curves import CURVES_NAME, Curve, read_curves
from pipeline.scoring.results import (
    MAP_FOLDER,
    MASK_FOLDER,
    SUMMARY_NAME,
    Summary,
    VolumeScore,
    read_scores,
    read_summary,
)
from pipeline.scoring.statistics import paired
from pipeline.scripts.files import sha256_file, write_durably
from pipeline.scripts.manifest import CHANNELS, FLAIR, VOLUMES


@dataclass(frozen=True)
class Run:
    """One evaluation folder and what is read from it."""

    name: str
    folder: Path
    summary: Summary
    by_patient: dict[str, VolumeScore]
    curves: dict[str, dict[str, Curve]]
    """Name of a training -> tag -> curve; empty where none were kept."""

    @cached_property
    def dsc(self) -> dict[str, float | None]:
        """Patient id -> DSC."""
        return {patient: score.dsc for patient, score in self.by_patient.items()}

    @cached_property
    def defined(self) -> dict[str, float]:
        """The same without patients whose DSC is not defined."""
        return {patient: dsc for patient, dsc in self.dsc.items() if dsc is not None}

    def file(self, folder: str, patient: str, kind: str) -> Path | None:
        """A volume of the evaluation, None where it is not there."""
        path = self.folder / folder / f"{patient}_{kind}.nii.gz"
        return path if path.is_file() else None


def write_report(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    names: Sequence[str] = (),
    viewers: int = MAX_VIEWERS,
) -> tuple[Path, list[str]]:
    """Write one HTML page of one or several evaluations; it needs no other file and no network.

    Args:
        folders: The evaluations' folders; differences are to the first.
        out: The page's file; by default ``report.html`` in the first folder.
        names: One name for each evaluation, used in the page; by default the folders' names.
        viewers: How many patients' slices can be looked at, the worst first.

    Returns:
        The page's file, and what is missing from the page.

    Raises:
        PipelineError: An evaluation is unreadable or does not fit the others, or the disk refuses.

    Example:
        >>> page, notes = write_report(["runs/basic_unet", "runs/attention_unet"])
        >>> page.name
        'report.html'
    """
    given = path_list(folders)
    if names and len(names) != len(given):
        raise PipelineError(f"{len(names)} --name for {len(given)} RUN (expected one each, or none).")
    if viewers < 0:
        raise PipelineError(f"--viewers {viewers} (expected 0 or more).")
    runs = read_runs(given, names)
    target = Path(out) if out else given[0] / REPORT_NAME
    if target.is_dir():
        raise PipelineError(f"{target}: is a folder (expected a name for the page, such as {target / REPORT_NAME}).")
    text, notes = _page(runs, viewers)
    write_durably(target, text.encode())
    return target, notes


def read_runs(folders: Sequence[Path], names: Sequence[str] = ()) -> list[Run]:
    """Evaluations that may stand side by side."""
    resolved = [folder.resolve() for folder in folders]
    names = names or _short_names(resolved)
    for what, items in (("RUN", map(str, resolved)), ("name", names)):
        item, count = Counter(items).most_common(1)[0]
        if count > 1:
            raise PipelineError(f"the same {what} twice ({item}). Give each once.")
    runs = [_read_run(name, folder) for name, folder in zip(names, folders, strict=True)]
    if len({run.summary["protocol"] for run in runs}) > 1:
        each = ", ".join(f"{run.name}: {run.summary['protocol']}" for run in runs)
        raise PipelineError(f"runs of different protocols ({each}). Evaluate them by one --protocol.")
    _refuse_other_truths(runs)
    return runs


def _read_run(name: str, folder: Path) -> Run:
    if not (folder / SUMMARY_NAME).is_file():
        what = f"no {SUMMARY_NAME} in it" if folder.exists() else "nothing there"
        raise PipelineError(f"{folder}: {what} (expected a folder that pipeline.evaluate wrote). Check the path.")
    summary, scores = read_summary(folder), read_scores(folder)
    by_patient = {score.patient: score for score in scores}
    if not len(by_patient) == len(scores) == summary.get("volumes"):
        raise PipelineError(f"{folder}: scores.csv and {SUMMARY_NAME} are not of one evaluation. Evaluate again.")
    return Run(name, folder, summary, by_patient, read_curves(folder / CURVES_NAME))


def _short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the folders' paths, as many as tell them apart."""
    parts = 1
    while len({folder.parts[-parts:] for folder in folders}) < len(set(folders)):
        parts += 1
    return ["/".join(folder.parts[-parts:]) for folder in folders]


def _refuse_other_truths(runs: Sequence[Run]) -> None:
    """One patient id must be one truth, or the runs cannot be compared by it."""
    first: dict[str, tuple[str, int, str | None]] = {}
    for run in runs:
        for patient, score in run.by_patient.items():
            label = run.file(VOLUMES, patient, "label")
            digest = sha256_file(label) if label else None
            name, voxels, known = first.setdefault(patient, (run.name, score.lesion_voxels, digest))
            if voxels != score.lesion_voxels or (None not in (known, digest) and known != digest):
                raise PipelineError(
                    f"patient {patient}: {name} and {run.name} were scored against different truths. Evaluate them on "
                    "one manifest, by one protocol."
                )


def _page(runs: Sequence[Run], viewers: int) -> tuple[str, list[str]]:
    """The page, and what is missing from it."""
    patients = worst_first(runs)
    chosen = _example_patients(runs[0], patients) if viewers else {}
    shown = {*patients[:viewers], *chosen}
    wanted = [patient for patient in patients if patient in shown]
    views, examples = _pictures(runs, wanted, chosen)
    notes = _notes(runs, wanted, views)
    if len(patients) > viewers:
        notes.append(f"slices of {len(views)} of {len(patients)} patients, the worst first (--viewers)")
    loader = jinja2.PackageLoader("pipeline.pages")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # patients stay worst first
    dsc = {run.name: run.dsc for run in runs}
    lesion_voxels = {patient: score.lesion_voxels for run in runs for patient, score in run.by_patient.items()}
    curves = {}
    for run in runs:
        for name, tags in run.curves.items():
            curves[run.name if len(run.curves) == 1 else f"{run.name}: {name}"] = tags
    text = environment.get_template("report.html.j2").render(
        runs=runs,
        rows=[_run_row(run, runs[0]) for run in runs],
        patients=patients,
        lesion_voxels=lesion_voxels,
        agreement=[any(score.agreement is not None for score in run.by_patient.values()) for run in runs],
        notes=notes,
        dsc=charts.dsc_svg(dsc, patients),
        sizes=charts.sizes_svg(dsc, lesion_voxels),
        curves=charts.curves_svg(curves) if curves else "",
        examples=examples,
        # A list of its own: JavaScript sorts keys that look like numbers.
        data={"runs": [run.name for run in runs], "channels": list(CHANNELS), "order": list(views), "patients": views},
        version=__version__,
    )
    return text, notes


def _pictures(
    runs: Sequence[Run], wanted: Sequence[str], chosen: Mapping[str, str]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The viewer's images by patient, and the examples for paper; both without patients whose image is not there."""
    views: dict[str, dict[str, Any]] = {}
    examples = []
    for patient in tqdm(wanted, desc="report", unit="patient", disable=None):
        volumes = _volumes(runs, patient)
        if volumes is None:
            continue
        dsc = {run.name: run.dsc[patient] for run in runs if patient in run.dsc}
        views[patient] = {"dsc": dsc, **patient_view(*volumes)}
        if patient in chosen:
            pictures = _example(*volumes[:3], views[patient]["start"])
            examples.append({"which": chosen[patient], "patient": patient, "pictures": pictures})
    return views, examples


def worst_first(runs: Sequence[Run]) -> list[str]:
    """All patients of all runs by the first run's DSC, ascending; those without one last, by id."""
    known = runs[0].defined
    everybody = {patient for run in runs for patient in run.by_patient}
    return sorted(everybody, key=lambda patient: (patient not in known, known.get(patient, 0.0), patient))


def _example_patients(first: Run, patients: Sequence[str]) -> dict[str, str]:
    """Patient -> which example it is: the worst, the median and the best of those with a DSC, as far as they differ."""
    scored = [patient for patient in patients if patient in first.defined]
    last = len(scored) - 1
    places = {last: "best", last // 2: "median", 0: "worst"}  # of one place the last word counts
    return {scored[place]: which for place, which in places.items() if scored}


def _notes(runs: Sequence[Run], wanted: Sequence[str], views: Mapping[str, Any]) -> list[str]:
    """What a reader of the page must know of its runs, and what is missing from it."""
    notes = []
    if len({run.summary["manifest_sha256"] for run in runs}) > 1:
        notes.append("the runs were evaluated on different manifests; patients that stand in several have one truth")
    if len({frozenset(run.by_patient) for run in runs}) > 1:
        notes.append("the runs are not of the same patients; differences are of those that both have")
    for run in runs:
        seen, undefined = run.summary["seen_in_training"], run.summary.get("undefined")
        if seen:
            notes.append(
                f"{run.name}: {len(seen)} of {len(run.by_patient)} patients were trained on: {', '.join(seen)}"
            )
        if undefined:
            notes.append(f"{run.name}: no DSC where neither truth nor prediction has a voxel: {', '.join(undefined)}")
        maskless = [patient for patient in views if patient in run.dsc and not run.file(MASK_FOLDER, patient, "mask")]
        if maskless:
            notes.append(f"{run.name}: no mask of {', '.join(maskless)} in its folder")
    without = ", ".join(patient for patient in wanted if patient not in views)
    if without:
        notes.append(
            f"no slices of {without}: {VOLUMES}/ of the evaluation lacks them. Evaluate again to keep them there"
        )
    return notes


def _run_row(run: Run, first: Run) -> dict[str, Any]:
    """How a run's networks were made, as text, and how its DSC differ from the first run's."""
    facts = [_training_facts(bundle) for bundle in run.summary["bundles"]]
    row: dict[str, Any] = {key: " + ".join(dict.fromkeys(each[key] for each in facts)) for key in facts[0]}
    row["network"] += ", flips" if run.summary["tta"] else ""
    return {**row, "apart": None if run is first else paired(first.defined, run.defined, run.summary["seed"])}


def _training_facts(bundle: Mapping[str, Any]) -> dict[str, str]:
    """Network, loss, budget and seed of a bundle, each "unknown" where the training's record does not tell."""
    training = bundle.get("training") or {}
    config = training.get("config") or {}
    own_network = _target((bundle.get("settings") or {}).get("network_def"))
    try:
        steps = int(config["max_epochs"]) * int(config["steps_per_epoch"])
        budget = f"{steps:,} steps of {config['batch_size']} slices, {config['image_size']} px"
    except (KeyError, TypeError, ValueError):
        budget = "unknown"
    network = f"{bundle['name']} ({own_network})" if own_network else bundle["name"]
    loss, seed = _target(config.get("loss")) or "unknown", str(training.get("seed", "unknown"))
    return {"network": network, "loss": loss, "budget": budget, "seed": seed}


def _target(definition: Any) -> str:
    """The class that a part of a config names, empty where it names none."""
    return str(definition.get("_target_", "")).rpartition(".")[2] if isinstance(definition, dict) else ""


Volumes = tuple[NDArray[Any], NDArray[Any], dict[str, NDArray[Any]], dict[str, NDArray[Any]]]
"""Image (H, W, D, 3) uint8, truth (H, W, D), masks (H, W, D) and uncertainties (H, W, D) by run."""


def _volumes(runs: Sequence[Run], patient: str) -> Volumes | None:
    """A patient's volumes, None where no run has its image and its truth."""
    paths = [(run.file(VOLUMES, patient, "image"), run.file(VOLUMES, patient, "label")) for run in runs]
    image_path, label_path = next((both for both in paths if all(both)), (None, None))
    if not image_path or not label_path:
        return None
    raw = load_image(image_path)
    image = np.stack([shown_in_grey(raw[..., channel]) for channel in range(len(CHANNELS))], axis=-1)
    truth = load_label(label_path)
    mask_files = {run.name: run.file(MASK_FOLDER, patient, "mask") for run in runs}
    map_files = {run.name: run.file(MAP_FOLDER, patient, "uncertainty") for run in runs}
    masks = {name: load_label(path) for name, path in mask_files.items() if path}
    maps = {name: load_map(path) for name, path in map_files.items() if path}
    volumes: list[tuple[str, NDArray[Any]]] = [("truth", truth), *masks.items(), *maps.items()]
    for what, volume in volumes:
        if volume.shape != image.shape[:3]:
            raise PipelineError(
                f"patient {patient}: {what} of shape {volume.shape}, image of {image.shape[:3]} (expected one grid). "
                "Evaluate again."
            )
    return image, truth, masks, maps


def _example(image: NDArray[Any], truth: NDArray[Any], masks: Mapping[str, NDArray[Any]], z: int) -> dict[str, str]:
    """Run -> picture of one slice: prediction orange, truth blue."""
    part = (*head_box(image, truth, *masks.values()), z)
    pictures = {}
    for run, mask in masks.items():
        frame = contour_frame(image[..., FLAIR][part], mask[part], truth[part], (ORANGE, SKY_BLUE))
        pictures[run] = data_address(frame, "png", compress_level=4)
    return pictures
