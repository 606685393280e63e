"""Volume -> probability -> mask, by one bundle or by the average of several."""

from __future__ import annotations

import itertools
import math
import operator
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pipeline.cohort.inputs import build_one
from pipeline.errors import PipelineError
from pipeline.imaging.formats import NIFTI_SUFFIXES, as_nifti
from pipeline.imaging.nifti import refuse_unusable, save_map, save_mask, spacing_mm
from pipeline.model.bundle import DEFAULT_BUNDLES, Bundle, load_bundle, refuse_single_pass
from pipeline.progress import progress
from pipeline.scripts.volumes import AFFINE, open_nifti

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Map = NDArray[np.float32]
MAX_VOLUMES_AT_ONCE = 3
"""One volume is read, one is in the network, one is finished."""
_NETWORK = threading.Lock()
"""Reading and finishing of volumes overlap, networks take turns."""
AS_IT_IS, LEFT_RIGHT = (), (3,)
"""Dimensions of a batch (1, 3, H, W, D) that are mirrored for a pass: none, or the image columns."""


@dataclass(frozen=True)
class VolumePrediction:
    """What is predicted for one volume, on the volume's own grid.

    Args:
        probability: Probability of a lesion, (H, W, D) float32, 0 to 1, averaged over all passes.
        mask: (H, W, D) uint8, 0 background, 1 lesion, by threshold and component rule of the first bundle.
        uncertainty: Standard deviation of the passes' probabilities, (H, W, D) float32, 0 to 0.5; None where it was not
            asked for.
        agreement: Mean DSC between the passes' masks (``pass_agreement``); None where it was not asked for, or no pass
            marks a voxel.
        affine: (4, 4), voxel to right, anterior, superior in mm.
        volume_ml: Volume of the mask in ml; None where the voxels' size is not known.
    """

    probability: Map
    mask: NDArray[np.uint8]
    uncertainty: Map | None = None
    agreement: float | None = None
    affine: NDArray[np.float64] = field(default_factory=AFFINE.copy)
    volume_ml: float | None = None


class Predictor:
    """Predicts volumes with networks that stay loaded.

    Each bundle predicts each volume once, or twice with flips: the volume itself and its mirror image, mirrored back.
    The probabilities of all these passes are averaged.

    Args:
        bundles: The bundles, loaded or by their names or folders; one or several. By default the three that the package
            brings.
        flips: Average with the prediction of the left-right mirrored volume (test-time augmentation).
        uncertainty: Also give uncertainty map and agreement; needs several passes.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for CUDA where there is some, else the CPU.
        trust: Also run bundles that are not this project's: their configs can run any code.
        all_components: Keep every connected component of the mask, not the largest alone.

    Raises:
        PipelineError: There is no bundle, a bundle cannot be loaded, or an uncertainty is asked for of a single pass.

    Example:
        >>> predictor = Predictor("basic_unet", flips=True)
        >>> prediction = predictor.predict("patient_image.nii.gz")
        >>> int(prediction.mask.sum())
        5310
    """

    def __init__(
        self,
        bundles: Bundle | str | Path | Sequence[Bundle | str | Path] = DEFAULT_BUNDLES,
        *,
        flips: bool = False,
        uncertainty: bool = False,
        device: str | None = None,
        trust: bool = False,
        all_components: bool = False,
    ) -> None:
        bundles = [bundles] if isinstance(bundles, (Bundle, str, Path)) else list(bundles)
        if not bundles:
            raise PipelineError("no bundle given (expected at least one). Pass --bundle FOLDER.")
        if uncertainty:
            refuse_single_pass(len(bundles), flips=flips)
        self.flips = flips
        self.uncertainty = uncertainty
        self.all_components = all_components
        self.bundles = [
            one if isinstance(one, Bundle) else load_bundle(one, device=device, trust=trust) for one in bundles
        ]

    def predict(self, image: Any, affine: NDArray[np.floating[Any]] | None = None) -> VolumePrediction:
        """Predict one volume.

        Args:
            image: FLAIR (I, J, K), or (I, J, K, 3) with channels pre-contrast, FLAIR, post-contrast: a NIfTI, MHA or
                NRRD file, a folder or zip with one patient's DICOM or slices, a nibabel or SimpleITK image, a MONAI
                MetaTensor (C, I, J, K), or an array.
            affine: (4, 4), voxel to right, anterior, superior in mm, of an array. Without it the array's rows run to
                posterior, its columns to the patient's left, its slices upwards: an array of slices, rows, columns, as
                ``SimpleITK.GetArrayFromImage`` gives it, needs ``.transpose(1, 2, 0)``.

        Returns:
            Probability and mask on the volume's own grid, the axes of a SimpleITK image as x, y, z; uncertainty and
            agreement where they were asked for.

        Raises:
            PipelineError: The volume is unreadable, of another shape, holds NaN, Inf or nothing above 0, or a
                prediction holds NaN or Inf.
        """
        if not isinstance(image, (str, Path)) or not str(image).lower().endswith(NIFTI_SUFFIXES):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "volume_image.nii"
                if isinstance(image, (str, Path)):
                    path = build_one(Path(image), Path(folder))
                else:
                    as_nifti(image, affine).to_filename(path)
                return self.predict(path)
        path = Path(image)
        refuse_unusable(path)
        passes = self.passes(path)
        # A large volume's probability takes hundreds of MB: only an uncertainty needs all of them at once.
        kept = [*passes] if self.uncertainty else []
        mean = reduce(np.add, kept) if kept else reduce(operator.iadd, passes)
        mean /= np.float32(len(self.bundles) * (1 + self.flips))
        mask, spacing = self.mask_of(mean), spacing_mm(path)
        return VolumePrediction(
            mean,
            mask,
            uncertainty=disagreement(kept) if self.uncertainty else None,
            agreement=pass_agreement([self.mask_of(one) for one in kept]) if self.uncertainty else None,
            affine=open_nifti(path).affine,
            volume_ml=None if spacing is None else int(mask.sum()) * math.prod(spacing) / 1000,
        )

    def passes(self, image: str | Path) -> Iterator[Map]:
        """The probability of a lesion by each pass in turn, (H, W, D) float32, 0 to 1, of a NIfTI file."""
        flips = (AS_IT_IS, LEFT_RIGHT) if self.flips else (AS_IT_IS,)
        for bundle in self.bundles:
            for mirrored in flips:
                yield _probability(bundle, Path(image), mirrored)

    def mask_of(self, probability: Map) -> NDArray[np.uint8]:
        """The mask of a probability, both (H, W, D), by threshold and component rule of the first bundle's config."""
        import torch
        from monai.transforms import KeepLargestConnectedComponentd

        mask = torch.from_numpy(probability)[None]
        for transform in self.bundles[0].to_mask.transforms:
            if not isinstance(transform, KeepLargestConnectedComponentd):
                mask = transform({"pred": mask})["pred"].to(torch.uint8)
            elif not self.all_components:
                mask = _within_box(transform, mask)
        return np.asarray(mask[0], dtype=np.uint8)


def _within_box(transform: Any, mask: torch.Tensor) -> torch.Tensor:
    """A component rule on the box of what is marked: to number the components of all voxels takes a GB."""
    marked = find_objects(np.asarray(mask[0] != 0, dtype=np.uint8))
    if not marked:
        return mask
    result = mask.new_zeros(mask.shape)
    result[(slice(None), *marked[0])] = transform({"pred": mask[(slice(None), *marked[0])]})["pred"]
    return result


def segment(
    image: Any,
    affine: NDArray[np.floating[Any]] | None = None,
    *,
    bundles: str | Path | Sequence[str | Path] = DEFAULT_BUNDLES,
    flips: bool = False,
    all_components: bool = False,
    device: str | None = None,
    trust: bool = False,
) -> VolumePrediction:
    """Mask, probability and volume of the FLAIR abnormality in one image. Several images: keep a ``Predictor``.

    Args:
        image: What ``Predictor.predict`` takes: a path, an image of nibabel or SimpleITK, a MetaTensor or an array.
        affine: (4, 4), voxel to right, anterior, superior in mm, of an array; without it an array's rows run to
            posterior, its columns to the patient's left, its slices upwards.
        bundles: The bundles' names or folders; by default the average of the three that the package brings.
        flips: Average with the prediction of the left-right mirrored volume.
        all_components: Keep every connected component of the mask, not the largest alone.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for CUDA where there is some, else the CPU.
        trust: Also run bundles that are not this project's: their configs can run any code.

    Raises:
        PipelineError: The image cannot be read or a bundle cannot be loaded.

    Example:
        >>> import numpy as np
        >>> found = segment(np.zeros((64, 64, 4)) + 1, bundles="basic_unet")
        >>> found.mask.shape, found.mask.dtype
        ((64, 64, 4), dtype('uint8'))
    """
    predictor = Predictor(bundles, flips=flips, all_components=all_components, device=device, trust=trust)
    return predictor.predict(image, affine)


def save_prediction(prediction: VolumePrediction, image: Path, mask: Path, uncertainty: Path) -> None:
    """Write mask and uncertainty aligned with the image; a map of before goes where there is none."""
    if prediction.uncertainty is None:
        uncertainty.unlink(missing_ok=True)
    else:
        save_map(prediction.uncertainty, uncertainty, image)
    save_mask(prediction.mask, mask, image)


def disagreement(passes: Sequence[Map]) -> Map:
    """The uncertainty map, (H, W, D) float32: standard deviation of the passes' probabilities, 0 (all agree) to 0.5.

    Source: test-time augmentation as in Wang et al., Neurocomputing 338 (2019), ensembles as in Lakshminarayanan et
    al., NeurIPS 2017.
    """
    deviation: Map = np.stack(passes).std(axis=0, dtype=np.float32)
    return deviation


def pass_agreement(masks: Sequence[NDArray[Any]]) -> float | None:
    """Mean DSC between every two passes' masks, 0 to 1; None for fewer than two masks, or where no pass marks a voxel.

    One number for a volume, known without its truth. Source: Roy, Conjeti, Navab, Wachinger, NeuroImage 195 (2019),
    there for Monte Carlo samples; here for networks and flips.
    """
    pairs = [(one.astype(bool), two.astype(bool)) for one, two in itertools.combinations(masks, 2)]
    sizes = [(int((one & two).sum()), int(one.sum()) + int(two.sum())) for one, two in pairs]
    agreements = [2 * common / total for common, total in sizes if total]
    return float(np.mean(agreements)) if agreements else None


def overlapped(work: Callable[[Item], Result], items: Sequence[Item], name: str) -> list[Result]:
    """Work on several volumes at once, results in order; the first error ends it and nothing more is begun.

    While a network works on one, the next is read and the one before is finished.
    """
    with ThreadPoolExecutor(MAX_VOLUMES_AT_ONCE) as pool:
        waiting = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in progress(waiting, name, "volume")]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _probability(bundle: Bundle, image: Path, mirrored: tuple[int, ...]) -> Map:
    import torch

    from pipeline.scripts.finite import prediction_fault

    try:
        data = bundle.preprocessing({"image": str(image)})
    except (RuntimeError, ValueError, OSError) as error:
        refuse_unusable(image)
        cause = error.__cause__ or error
        raise PipelineError(f"{image}: {bundle.name} cannot read it ({cause}). Check the volume.") from error
    batch = data["image"][None].to(bundle.device)
    with torch.inference_mode():
        with _NETWORK:
            logits = bundle.inferer(batch.flip(mirrored), bundle.network).flip(mirrored)
        # Before the sigmoid, which makes 1 of an infinite logit.
        if fault := prediction_fault(logits, [image.name]):
            refuse_unusable(image)
            raise PipelineError(f"{image}: {bundle.name}: {fault}")
        # The engine hands postprocessing one volume without the batch dimension; so do we.
        data["pred"] = logits[0]
        probability = bundle.to_probability(data)["pred"]
    return np.asarray(probability[0].cpu(), dtype=np.float32)
