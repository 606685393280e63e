"""The pictures of the docs, of phantoms alone; `make pictures` runs it after `make demo`.

``slices.png`` shows slices with contours of truth and prediction. ``report.png`` and ``predictions.png`` are the two
HTML pages in headless Chromium. The report is of two evaluations by the network of ``make demo``: one pass, and the
mean of two passes with uncertainty. ``two-sigmoids.svg`` is a chart of two functions. ``tools.results`` draws
``out_of_fold.svg``. The diagrams ``method.svg`` and ``pipeline.svg`` are written as SVG text.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import run_cli
from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

OUT = Path(__file__).parents[1] / "docs" / "images"
COUNT = 5
"""Slices in ``slices.png``, one of each patient."""
REPORT_PX, PREDICTIONS_PX = (1200, 1000), (640, 1200)
"""Width and height of the window in which a page is shown, in CSS pixels."""
MARGIN_PX = 3
"""Height of the margin below a page's viewer, in CSS pixels."""
HALF = 128
"""Number of grays in a picture, and of other colors."""
SCALE = 1.25
"""Pixels of a picture for each CSS pixel. Text stays sharp on fine screens."""
GRAY_WITHIN = 8
"""Largest difference between red, green and blue of a pixel that counts as gray."""
MAX_BYTES = 250_000
"""Largest size of a picture file."""
SPACING_MM = (1.8, 1.8, 7.0)
"""A voxel size for the phantoms' slices, which have none, so that the page shows volumes in ml."""
BUNDLE, WEIGHTS = "basic_unet", Path("model", "model.pt")
"""The bundle of the demo, and its weights in the demo's folder."""
SHOW_REPORT = "document.getElementById('look').scrollIntoView();"
SHOW_PREDICTIONS = "document.getElementById('map').click();"
"""What is done to a page before its picture is taken."""
PAPER, INK = "#15181c", "#f2f4f6"
"""Ground and text of ``slices.png``, readable on light and on dark pages."""
ONCE, TWICE = "#0072b2", "#d55e00"
PREDICTION, TRUTH = "#e69f00", "#56b4e9"
"""As in the pages' viewer: told apart by readers who cannot tell red from green."""
FONT: dict[Any, Any] = {"font.family": "DejaVu Sans"}
"""A font that comes with matplotlib, so that the letters are the same on every machine."""


def draw_slices(results: Path, target: Path) -> None:
    """Write a row of slices with the contours of truth and prediction, from the best patient to the worst.

    Args:
        results: The folder of an evaluation.
        target: The PNG file, 1600 pixels wide.

    Raises:
        PipelineError: The folder holds no evaluation of at least ``COUNT`` patients with a DSC.

    Example:
        >>> draw_slices(Path("demo/results"), Path("docs/images/slices.png"))
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from PIL import Image

    from pipeline.imaging.nifti import shown_in_gray
    from pipeline.pages.viewer import head_box
    from pipeline.scoring.results import read_scores
    from pipeline.scripts.manifest import FLAIR

    scored = [score for score in read_scores(results) if score.dsc is not None]
    if len(scored) < COUNT:
        raise PipelineError(f"{results}: {len(scored)} patients with a DSC (expected at least {COUNT}). Run: make demo")
    ranked = sorted(scored, key=lambda score: score.dsc or 0.0, reverse=True)
    chosen = [ranked[round(place * (len(ranked) - 1) / (COUNT - 1))] for place in range(COUNT)]
    with mpl.rc_context(FONT):
        figure = Figure(figsize=(10, 2.6), dpi=160, facecolor=PAPER)
        figure.subplots_adjust(left=0.008, right=0.992, top=0.885, bottom=0.12, wspace=0.03)
        volumes = [_volume(results, score.patient) for score in chosen]
        boxes = [head_box(image, truth, mask) for image, truth, mask in volumes]
        side = max(part.stop - part.start for box in boxes for part in box)
        for place, (score, (image, truth, mask), box) in enumerate(zip(chosen, volumes, boxes, strict=True)):
            z = int(truth.sum(axis=(0, 1)).argmax())
            rows, columns = (_widened(part, side, length) for part, length in zip(box, truth.shape, strict=False))
            gray = shown_in_gray(image[..., FLAIR])[rows, columns, z]
            axes = figure.add_subplot(1, COUNT, place + 1)
            axes.imshow(gray, cmap="gray", interpolation="bicubic", aspect="equal")
            for found, color, dashes in ((mask, PREDICTION, "solid"), (truth, TRUTH, (0, (2.2, 1.6)))):
                if found[rows, columns, z].any():
                    axes.contour(found[rows, columns, z], [0.5], colors=color, linewidths=1.8, linestyles=[dashes])
            axes.set_title(f"DSC {score.dsc:.2f}", color=INK, fontsize=9.5, pad=4)
            axes.set_axis_off()
        lines = [Line2D([], [], color=PREDICTION, lw=2.2), Line2D([], [], color=TRUTH, lw=2.2, ls=(0, (2.2, 1.2)))]
        legend: dict[str, Any] = {
            "loc": "lower center",
            "ncols": 2,
            "frameon": False,
            "labelcolor": INK,
            "fontsize": 9.5,
        }
        figure.legend(lines, ["prediction", "truth"], borderaxespad=0.2, handlelength=2.6, **legend)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor=PAPER)
    write_png(Image.open(buffer), target)


def draw_sigmoids(target: Path) -> None:
    """Write a chart of the sigmoid of a logit, and of the sigmoid of that sigmoid, which stays above 0.5.

    Args:
        target: The SVG file.

    Example:
        >>> draw_sigmoids(Path("docs/images/two-sigmoids.svg"))
    """
    import matplotlib as mpl
    import numpy as np
    from matplotlib.figure import Figure

    from pipeline.scripts.files import write_durably

    logit = np.linspace(-10, 10, 101)
    once = 1 / (1 + np.exp(-logit))
    buffer = io.BytesIO()
    with mpl.rc_context({**FONT, "svg.hashsalt": "two-sigmoids", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.2, 3.4), facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        axes.plot(logit, once, color=ONCE, lw=2.5, label="one sigmoid: 0 to 1")
        axes.plot(logit, 1 / (1 + np.exp(-once)), color=TWICE, lw=2.5, label="two sigmoids: 0.5 to 0.73")
        axes.axhline(0.5, color="gray", lw=1.2, ls="--", label="threshold 0.5")
        axes.set(xlabel="logit, the network's output", ylabel="result", xlim=(-10, 10), ylim=(0, 1))
        axes.legend(loc="upper left", frameon=False)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_durably(target, buffer.getvalue())


def _volume(results: Path, patient: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Image (H, W, D, 3), truth and mask (H, W, D) of a patient of an evaluation."""
    from pipeline.imaging.nifti import load_image, load_label

    volumes = results / "volumes"
    truth = load_label(volumes / f"{patient}_label.nii.gz")
    return (
        load_image(volumes / f"{patient}_image.nii.gz"),
        truth,
        load_label(results / "masks" / f"{patient}_mask.nii.gz"),
    )


def _widened(part: slice, side: int, length: int) -> slice:
    """As many pixels as ``side``, at most ``length``, around the middle of a part of 0 to ``length``."""
    start = max(0, min((part.start + part.stop - side) // 2, length - side))
    return slice(start, min(start + side, length))


def write_png(picture: Image, target: Path) -> None:
    """Write a picture in 256 colors, half of them gray, without metadata.

    Args:
        picture: Any picture of Pillow.
        target: The PNG file.

    Raises:
        PipelineError: The file would be larger than ``MAX_BYTES``.
    """
    import numpy as np
    from PIL import Image

    from pipeline.scripts.files import write_durably

    pixels = np.asarray(picture.convert("RGB"))
    places = (pixels.mean(axis=2) / 255 * (HALF - 1)).round().astype(np.uint8)
    palette = np.repeat(np.linspace(0, 255, HALF).round().astype(int), 3).tolist()
    colored = np.ptp(pixels, axis=2) > GRAY_WITHIN
    if colored.any():  # by themselves: beside the grays, thin lines would get no color of their own
        found = Image.fromarray(pixels[colored][None]).quantize(HALF, method=Image.Quantize.MAXCOVERAGE)
        places[colored] = np.asarray(found)[0] + HALF
        palette += (found.getpalette() or [])[: 3 * HALF]
    small = Image.fromarray(places)
    small.putpalette(palette)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    if buffer.tell() > MAX_BYTES:
        raise PipelineError(
            f"{target}: {buffer.tell()} bytes (expected at most {MAX_BYTES}). Show less, or lower SCALE."
        )
    write_durably(target, buffer.getvalue())


def open_browser(size: tuple[int, int]) -> Any:
    """A headless Chromium that can be driven by Selenium.

    Args:
        size: Width and height of the window in CSS pixels.

    Raises:
        PipelineError: There is no Chromium with its driver.
    """
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (chromium and driver):
        raise PipelineError("no chromium and chromedriver. On Debian: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=Service(driver))
    media = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": SCALE, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    return browser


def photograph(page: Path, target: Path, size: tuple[int, int], *, script: str = "") -> None:
    """Write a picture of a page, down to the end of its viewer, once that has drawn a slice.

    Args:
        page: The HTML file, with a viewer.
        target: The PNG file, ``SCALE`` times as wide and at most as high as ``size``.
        size: Width and height of the window in CSS pixels.
        script: JavaScript that is run before the picture is taken, such as one that scrolls.

    Raises:
        PipelineError: There is no browser, or the picture is too large.
    """
    import base64

    from PIL import Image
    from selenium.webdriver.support.ui import WebDriverWait

    browser = open_browser(size)
    try:
        browser.get(page.resolve().as_uri())
        WebDriverWait(browser, 60).until(lambda one: one.find_element("id", "viewer").get_attribute("data-drawn"))
        browser.execute_script(script)
        # Two frames later the window shows what the script changed.
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        end = browser.execute_script("return document.getElementById('viewer').getBoundingClientRect().bottom")
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    finally:
        browser.quit()
    picture = Image.open(io.BytesIO(base64.b64decode(shot["data"])))
    height = min(picture.height, round((end + MARGIN_PX) * SCALE))
    write_png(picture.crop((0, 0, picture.width, height)), target)


def report_page(demo: Path, folder: Path) -> Path:
    """The report of two evaluations: that of ``make demo``, and one with flips and uncertainty.

    Args:
        demo: The folder that ``make demo`` filled.
        folder: An empty folder for the second evaluation and the page.

    Returns:
        The path of the page.
    """
    from pipeline.pages.report import write_report
    from pipeline.scoring.evaluation import evaluate_volumes

    evaluate_volumes(
        demo / "manifest", BUNDLE, folder / "flips", weights=[demo / WEIGHTS], flips=True, uncertainty=True
    )
    names = ["one pass", "flips averaged"]
    return write_report([demo / "results", folder / "flips"], folder / "report.html", names=names)[0]


def predictions_page(demo: Path, folder: Path, count: int = 3) -> Path:
    """The page of predictions for the FLAIR of some phantoms, with uncertainty.

    Args:
        demo: The folder that ``make demo`` filled.
        folder: An empty folder for FLAIR volumes and results.
        count: How many phantoms, in the order of their names.

    Returns:
        The path of the page.
    """
    import nibabel as nib
    import numpy as np

    from pipeline import predict
    from pipeline.scripts.manifest import FLAIR
    from pipeline.scripts.volumes import open_nifti

    (folder / "flair").mkdir()
    for path in sorted((demo / "results" / "volumes").glob("*_image.nii.gz"))[:count]:
        image = open_nifti(path)
        flair = nib.Nifti1Image(np.asarray(image.dataobj)[..., FLAIR], image.affine @ np.diag([*SPACING_MM, 1.0]))
        flair.header.set_xyzt_units("mm")
        flair.to_filename(folder / "flair" / path.name.replace("_image", "_flair"))
    weights = ["--bundle", BUNDLE, "--weights", str(demo / WEIGHTS)]
    options = ["--out", str(folder / "masks"), *weights, "--tta", "--uncertainty", "--quiet"]
    predict.main([str(folder / "flair"), *options])
    return folder / "masks" / "predictions.html"


def main(argv: Sequence[str] | None = None) -> int:
    """Draw all pictures and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tools.pictures", description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="the folder that `make demo` filled")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the pictures (default: docs/images)")
    given = parser.parse_args(argv)
    for needed in (given.demo / "results", given.demo / WEIGHTS):
        if not needed.exists():
            raise PipelineError(f"{needed}: does not exist. Run: make demo")
    given.out.mkdir(parents=True, exist_ok=True)
    draw_slices(given.demo / "results", given.out / "slices.png")
    draw_sigmoids(given.out / "two-sigmoids.svg")
    with tempfile.TemporaryDirectory() as name:
        report = report_page(given.demo, Path(name))
        photograph(report, given.out / "report.png", REPORT_PX, script=SHOW_REPORT)
        page = predictions_page(given.demo, Path(name))
        photograph(page, given.out / "predictions.png", PREDICTIONS_PX, script=SHOW_PREDICTIONS)
    for path in sorted(given.out.glob("*.png")):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
