"""Evaluations side by side -> one HTML page with tables, charts and a viewer, complete in itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.errors import PipelineError
from pipeline.files import path_list
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
from pipeline.scripts.files import sha256_file, write_durably
from pipeline.scripts.manifest import CHANNELS, FLAIR, VOLUMES

REPORT_NAME = "report.html"
MAX_VIEWERS = 20
"""Patients whose slices are in the page unless asked: each takes about half a megabyte, and more for each run."""
EXAMPLES = ("worst", "median", "best")


@dataclass(frozen=True)
class Run:
    """One evaluation folder.

    Args:
        name: The name of the run in the page.
        folder: The evaluation's folder.
        summary: The content of its ``summary.json``.
        scores: The rows of its ``scores.csv``.
        curves: Name of a training -> tag -> curve; empty where none were kept.
    """

    name: str
    folder: Path
    summary: Summary
    scores: tuple[VolumeScore, ...]
    curves: dict[str, dict[str, Curve]]

    @cached_property
    def by_patient(self) -> dict[str, VolumeScore]:
        """Patient id -> score."""
        return {score.patient: score for score in self.scores}

    @property
    def dsc(self) -> dict[str, float | None]:
        """Patient id -> DSC."""
        return {score.patient: score.dsc for score in self.scores}

    @property
    def defined(self) -> dict[str, float]:
        """The same without patients whose DSC is not defined."""
        return {score.patient: score.dsc for score in self.scores if score.dsc is not None}

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
    text, notes = page(runs, viewers)
    write_durably(target, text.encode())
    return target, notes


def read_runs(folders: Sequence[Path], names: Sequence[str] = ()) -> list[Run]:
    """Evaluations that may stand side by side."""
    for folder in folders:
        if not (folder / SUMMARY_NAME).is_file():
            what = "nothing there" if not folder.exists() else f"no {SUMMARY_NAME} in it"
            raise PipelineError(f"{folder}: {what} (expected a folder that pipeline.evaluate wrote). Check the path.")
    resolved = [folder.resolve() for folder in folders]
    names = list(names) or _short_names(resolved)
    for what, items in (("RUN", list(map(str, folders))), ("name", list(names))):
        twice = [item for item, count in Counter(items).items() if count > 1]
        if twice or (what == "RUN" and len(set(resolved)) < len(resolved)):
            raise PipelineError(f"the same {what} twice ({(twice or items)[0]}). Give each once.")
    for folder in folders:
        _refuse_other_scores(folder)
    runs = [
        Run(name, folder, read_summary(folder), tuple(read_scores(folder)), read_curves(folder / CURVES_NAME))
        for name, folder in zip(names, folders, strict=True)
    ]
    protocols = {run.summary["protocol"] for run in runs}
    if len(protocols) > 1:
        each = ", ".join(f"{run.name}: {run.summary['protocol']}" for run in runs)
        raise PipelineError(f"runs of different protocols ({each}). Evaluate them by one --protocol.")
    _refuse_other_truths(runs)
    return runs


def _refuse_other_scores(folder: Path) -> None:
    """Table and summary must be of one evaluation."""
    patients = [score.patient for score in read_scores(folder)]
    if len(patients) != read_summary(folder).get("volumes") or len(set(patients)) < len(patients):
        raise PipelineError(f"{folder}: scores.csv and {SUMMARY_NAME} are not of one evaluation. Evaluate again.")


def _short_names(folders: Sequence[Path]) -> list[str]:
    for parts in range(1, max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return list(map(str, folders))


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


def page(runs: Sequence[Run], viewers: int = MAX_VIEWERS) -> tuple[str, list[str]]:
    """The page, and what is missing from it."""
    import jinja2

    from pipeline.pages import charts

    patients = worst_first(runs)
    notes = _notes(runs)
    wanted = _example_patients(runs[0], patients) if viewers else {}
    shown = {*patients[:viewers], *wanted}
    views, examples, missing = _pictures(runs, [patient for patient in patients if patient in shown], wanted)
    notes += missing
    if len(patients) > viewers:
        notes.append(f"slices of {len(views)} of {len(patients)} patients, the worst first (--viewers)")
    dsc = {run.name: run.dsc for run in runs}
    curves = {
        run.name if len(run.curves) == 1 else f"{run.name}: {name}": tags
        for run in runs
        for name, tags in run.curves.items()
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # patients stay worst first
    text = environment.get_template("report.html.j2").render(
        runs=[_run_row(run, runs[0]) for run in runs],
        patients=[_patient_row(patient, runs, patient in views) for patient in patients],
        names=[run.name for run in runs],
        agreement=[any(score.agreement is not None for score in run.scores) for run in runs],
        protocol=runs[0].summary["protocol"],
        notes=notes,
        dsc=charts.dsc_svg(dsc, patients),
        sizes=charts.sizes_svg(dsc, {p: score.lesion_voxels for run in runs for p, score in run.by_patient.items()}),
        curves=charts.curves_svg(curves) if curves else "",
        examples=examples,
        # A list of its own: JavaScript sorts keys that look like numbers.
        data={"runs": [run.name for run in runs], "channels": list(CHANNELS), "order": list(views), "patients": views},
        version=__version__,
        sources=[_source(run) for run in runs],
    )
    return text, notes


def worst_first(runs: Sequence[Run]) -> list[str]:
    """All patients of all runs by the first run's DSC, ascending; those without one last, by id."""
    known = runs[0].defined
    everybody = dict.fromkeys(patient for run in runs for patient in run.by_patient)
    return sorted(everybody, key=lambda patient: (patient not in known, known.get(patient, 0.0), patient))


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    if len({run.summary["manifest_sha256"] for run in runs}) > 1:
        notes.append("the runs were evaluated on different manifests; patients that stand in several have one truth")
    if len({frozenset(run.by_patient) for run in runs}) > 1:
        notes.append("the runs are not of the same patients; differences are of those that both have")
    for run in runs:
        seen = run.summary["seen_in_training"]
        if seen:
            notes.append(f"{run.name}: {len(seen)} of {len(run.scores)} patients were trained on: {', '.join(seen)}")
        if run.summary.get("undefined"):
            notes.append(
                f"{run.name}: no DSC where neither truth nor prediction has a voxel: "
                f"{', '.join(run.summary['undefined'])}"
            )
    return notes


def _run_row(run: Run, first: Run) -> dict[str, Any]:
    """A run's row of the table; texts where a value is for reading alone."""
    from pipeline.scoring.statistics import paired

    bundles = run.summary["bundles"]
    trainings = [bundle.get("training") or {} for bundle in bundles]
    configs = [training.get("config") or {} for training in trainings]
    return {
        "name": run.name,
        "network": _together(_network(bundle) for bundle in bundles) + (", flips" if run.summary["tta"] else ""),
        "loss": _together(_loss(config) for config in configs),
        "budget": _together(_budget(config) for config in configs),
        "seed": _together(str(training.get("seed", "unknown")) for training in trainings),
        "mean": run.summary["dsc_mean"],
        "interval": run.summary["dsc_mean_95"],
        "median": run.summary["dsc_median"],
        "lowest": run.summary["dsc_min"],
        "scored": run.summary["scored"],
        "apart": None if run is first else paired(first.defined, run.defined, run.summary["seed"]),
    }


def _together(texts: Any) -> str:
    return " + ".join(dict.fromkeys(texts))


def _network(bundle: Mapping[str, Any]) -> str:
    own = (bundle.get("settings") or {}).get("network_def")
    other = f" ({own['_target_'].rpartition('.')[2]})" if isinstance(own, dict) and "_target_" in own else ""
    return f"{bundle['name']}{other}"


def _loss(config: Mapping[str, Any]) -> str:
    loss = config.get("loss")
    return str(loss["_target_"]).rpartition(".")[2] if isinstance(loss, dict) and "_target_" in loss else "unknown"


def _budget(config: Mapping[str, Any]) -> str:
    try:
        steps = int(config["max_epochs"]) * int(config["steps_per_epoch"])
        return f"{steps:,} steps of {config['batch_size']} slices, {config['image_size']} px"
    except (KeyError, TypeError, ValueError):
        return "unknown"


def _patient_row(patient: str, runs: Sequence[Run], has_view: bool) -> dict[str, Any]:
    scores = [run.by_patient.get(patient) for run in runs]
    known = next(score for score in scores if score)
    base = scores[0].dsc if scores[0] else None
    others = [score.dsc if score else None for score in scores[1:]]
    apart = [None, *(None if base is None or dsc is None else dsc - base for dsc in others)]
    return {
        "patient": patient,
        "lesion_voxels": known.lesion_voxels,
        "scores": scores,
        "apart": apart,
        "has_view": has_view,
    }


def _source(run: Run) -> dict[str, Any]:
    summary = run.summary
    return {
        "name": run.name,
        "command": summary["command"],
        "manifest_sha256": summary["manifest_sha256"],
        "weights": [
            {"name": bundle["name"], "fold": bundle.get("fold"), "sha256": bundle["weights_sha256"]}
            for bundle in summary["bundles"]
        ],
        "versions": summary.get("versions", {}),
        "device": summary.get("device", "unknown"),
    }


def _pictures(
    runs: Sequence[Run], patients: Sequence[str], wanted: Mapping[str, str]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], list[str]]:
    """The viewer's images by patient, three examples for paper, and notes on what has none."""
    from tqdm import tqdm

    views: dict[str, dict[str, Any]] = {}
    examples = []
    without = []
    maskless: dict[str, list[str]] = {run.name: [] for run in runs}
    for patient in tqdm(patients, desc="report", unit="patient", disable=None):
        volumes = _volumes(runs, patient)
        if volumes is None:
            without.append(patient)
            continue
        for run in runs:
            if patient in run.by_patient and run.name not in volumes.masks:
                maskless[run.name].append(patient)
        views[patient] = volumes.view(_view_head(runs, patient))
        if patient in wanted:
            dsc = {run.name: run.dsc.get(patient) for run in runs}
            examples.append({"which": wanted[patient], "patient": patient, "dsc": dsc, **volumes.example(runs)})
    notes = [f"{name}: no mask of {', '.join(found)} in its folder" for name, found in maskless.items() if found]
    if without:
        notes.append(
            f"no slices of {', '.join(without)}: {VOLUMES}/ of the evaluation lacks them. Evaluate again to keep "
            "them there"
        )
    return views, sorted(examples, key=lambda example: EXAMPLES.index(example["which"])), notes


def _view_head(runs: Sequence[Run], patient: str) -> dict[str, Any]:
    scores = {run.name: run.by_patient[patient].dsc for run in runs if patient in run.by_patient}
    return {"dsc": scores}


def _example_patients(first: Run, patients: Sequence[str]) -> dict[str, str]:
    """Patient -> which example it is: the worst, the median and the best of those with a DSC, as far as they differ."""
    scored = [patient for patient in patients if patient in first.defined]
    if not scored:
        return {}
    places = (0, (len(scored) - 1) // 2, len(scored) - 1)
    return {scored[place]: which for which, place in reversed([*zip(EXAMPLES, places, strict=True)])}


@dataclass(frozen=True)
class _Volumes:
    """A patient's volumes: image (H, W, D, 3) uint8, truth and masks (H, W, D), maps (H, W, D) float32."""

    image: Any
    truth: Any
    masks: dict[str, Any]
    maps: dict[str, Any]

    def view(self, head: dict[str, Any]) -> dict[str, Any]:
        from pipeline.pages.viewer import patient_view

        return {**head, **patient_view(self.image, self.truth, self.masks, self.maps)}

    def example(self, runs: Sequence[Run]) -> dict[str, Any]:
        """The slice with most lesion, a picture a run: prediction orange, truth blue."""
        import base64

        import numpy as np

        from pipeline.pages.overlays import ORANGE, SKY_BLUE, contour_frame, png_bytes
        from pipeline.pages.viewer import head_box

        rows, columns = head_box(self.image, self.truth, *self.masks.values())
        area = self.truth.sum(axis=(0, 1))
        if not area.any():
            area = sum(mask.sum(axis=(0, 1)) for mask in self.masks.values())
        z = int(np.argmax(area))
        flair = self.image[rows, columns, z, FLAIR]
        pictures = []
        for run in runs:
            if run.name in self.masks:
                mask, truth = self.masks[run.name][rows, columns, z], self.truth[rows, columns, z]
                png = png_bytes(contour_frame(flair, mask, truth, (ORANGE, SKY_BLUE)))
                pictures.append({"run": run.name, "src": f"data:image/png;base64,{base64.b64encode(png).decode()}"})
        return {"slice": z + 1, "depth": self.image.shape[2], "pictures": pictures}


def _volumes(runs: Sequence[Run], patient: str) -> _Volumes | None:
    """A patient's volumes, None where no run has its image."""
    import numpy as np

    from pipeline.imaging.nifti import load_image, load_label, load_map, shown_in_grey

    paths = [(run.file(VOLUMES, patient, "image"), run.file(VOLUMES, patient, "label")) for run in runs]
    both = [(image, label) for image, label in paths if image and label]
    if not both:
        return None
    raw = load_image(both[0][0])
    image = np.stack([shown_in_grey(raw[..., channel]) for channel in range(len(CHANNELS))], axis=-1)
    truth = load_label(both[0][1])
    masks: dict[str, Any] = {}
    maps: dict[str, Any] = {}
    for run in runs:
        mask, uncertainty = run.file(MASK_FOLDER, patient, "mask"), run.file(MAP_FOLDER, patient, "uncertainty")
        if mask:
            masks[run.name] = load_label(mask)
        if uncertainty:
            maps[run.name] = load_map(uncertainty)
    volumes: list[tuple[str, Any]] = [("truth", truth), *masks.items(), *maps.items()]
    for what, volume in volumes:
        if volume.shape != image.shape[:3]:
            raise PipelineError(
                f"patient {patient}: {what} of shape {volume.shape}, image of {image.shape[:3]} (expected one grid). "
                "Evaluate again."
            )
    return _Volumes(image, truth, masks, maps)
