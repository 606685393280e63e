"""Predict a volume's probability and mask, with one bundle or the average of several."""

from __future__ import annotations

import itertools
import logging
import math
import operator
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from pipeline.cohort.inputs import build_one
from pipeline.errors import PipelineError
from pipeline.imaging.formats import NIFTI_SUFFIXES, as_nifti, refuse_second_affine
from pipeline.imaging.nifti import oddities, refuse_unusable, save_map, save_mask, spacing_mm
from pipeline.model.bundle import DEFAULT_BUNDLES, Bundle, load_bundle, refuse_single_pass
from pipeline.progress import progress
from pipeline.scripts.volumes import AFFINE, affine_mm, open_nifti

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Map = NDArray[np.float32]
MAX_VOLUMES_AT_ONCE = 3
"""One volume is read, one is in the network and one is written, all at the same time."""
_NETWORK = threading.Lock()
"""Held while a volume is in a network: only one is at a time, while others are read and written."""
LOW_AGREEMENT = 0.89
"""Masks of a lower agreement should be looked at first. Of the 90 patients that the package's three networks had not
seen, about a fifth lie below it, and among these are all with a DSC under 0.7 (``docs/results/accuracy.md``)."""
AS_IT_IS, LEFT_RIGHT = (), (3,)
"""Dimensions of a batch (1, 3, H, W, D) that one pass mirrors: none, or the columns W."""


@dataclass(frozen=True)
class VolumePrediction:
    """The prediction for one volume, on the volume's own grid.

    Args:
        probability: Probability of a lesion, (H, W, D) float32, 0 to 1, averaged over all passes.
        mask: (H, W, D) uint8, 0 background, 1 lesion, by the first bundle's threshold and component rule.
        uncertainty: Standard deviation of the passes' probabilities, (H, W, D) float32, 0 to 0.5; None if it was not
            asked for.
        agreement: Mean DSC between the passes' masks, 0 to 1 (``pass_agreement``); None for a single pass, or if all
            these masks are empty.
        affine: (4, 4), from voxel indices to mm to the right, anterior, superior (RAS+).
        volume_ml: Volume of the mask in ml; None if the voxel size is not known.
    """

    probability: Map
    mask: NDArray[np.uint8]
    uncertainty: Map | None = None
    agreement: float | None = None
    affine: NDArray[np.float64] = field(default_factory=AFFINE.copy)
    volume_ml: float | None = None


class Predictor:
    """Predicts volumes with networks that stay loaded.

    Each bundle predicts each volume once. With flips, it also predicts the mirrored volume, and the result is mirrored
    back. The probabilities of all these passes are averaged.

    Args:
        bundles: One or several bundles: loaded ones, names, or folders. The default is the package's own three.
        flips: Also predict the left-right mirrored volume, and average both (test-time augmentation).
        uncertainty: Also compute an uncertainty map. This needs several passes.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for CUDA if available, else the CPU.
        trust: Also run bundles that are not this project's. Their configs can run any code.
        all_components: Keep every connected component of the mask, not only the largest.

    Raises:
        PipelineError: No bundle is given, a bundle cannot be loaded, or there is only one pass for an uncertainty.

    Examples:
        >>> import pipeline
        >>> predictor = pipeline.Predictor("basic_unet", flips=True, uncertainty=True)
        >>> prediction = predictor.predict("flair.nii.gz")
        >>> prediction.mask.shape == prediction.uncertainty.shape
        True
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
            raise PipelineError("no bundle given (expected at least one). Name one, such as basic_unet.")
        if uncertainty:
            refuse_single_pass(len(bundles), flips=flips)
        self.flips = flips
        self.uncertainty = uncertainty
        self.all_components = all_components
        self.bundles = [
            one if isinstance(one, Bundle) else load_bundle(one, device=device, trust=trust) for one in bundles
        ]

    def predict(self, image: Any, affine: NDArray[np.floating[Any]] | None = None) -> VolumePrediction:
        """The prediction for one volume, on the volume's own grid.

        Args:
            image: FLAIR, or three channels: pre-contrast T1, FLAIR, post-contrast T1. It is a NIfTI, MHA or NRRD file,
                a folder or zip with one patient's DICOM or slices, a nibabel or SimpleITK image, a MONAI MetaTensor
                (C, I, J, K), or an array (I, J, K) or (I, J, K, 3).
            affine: The affine of an array, (4, 4), from voxel indices to mm to the right, anterior, superior (RAS+).
                Without it, the array's rows run to posterior, its columns to the patient's left, its slices upwards.
                An array (slices, rows, columns) from ``SimpleITK.GetArrayFromImage`` needs ``.transpose(1, 2, 0)``.

        Returns:
            Probability, mask and volume; with several passes also the agreement, and the uncertainty if it was asked
            for. The axes of a SimpleITK image are x, y, z.

        Raises:
            PipelineError: The volume cannot be read, has another shape, or holds NaN, Inf or nothing above 0, or the
                prediction holds NaN or Inf. An affine is given beside an image that has its own.

        Examples:
            >>> import pipeline
            >>> predictor = pipeline.Predictor("basic_unet")
            >>> prediction = predictor.predict("flair.nii.gz")
            >>> prediction.mask.shape == prediction.probability.shape
            True
            >>> f"{prediction.volume_ml:.1f} ml"
            '... ml'
        """
        with _as_file(image, affine) as path:
            return self._predict(path)

    def _predict(self, path: Path) -> VolumePrediction:
        refuse_unusable(path)
        # A large volume's probability takes hundreds of MB. Only uncertainty needs those of all passes at once.
        kept: list[Map] = []
        masks: list[NDArray[np.uint8]] = []

        def noted(probability: Map) -> Map:
            masks.append(self.mask_of(probability))
            if self.uncertainty:
                kept.append(probability.copy())
            return probability

        count = len(self.bundles) * (1 + self.flips)
        passes = self.passes(path)
        mean = reduce(operator.iadd, map(noted, passes) if count > 1 else passes)
        mean /= np.float32(count)
        mask, spacing = self.mask_of(mean), spacing_mm(path)
        return VolumePrediction(
            mean,
            mask,
            uncertainty=disagreement(kept) if self.uncertainty else None,
            agreement=pass_agreement(masks),
            affine=affine_mm(open_nifti(path)),
            volume_ml=None if spacing is None else int(mask.sum()) * math.prod(spacing) / 1000,
        )

    def passes(self, image: str | Path) -> Iterator[Map]:
        """The lesion probability from each pass in turn: each network, and with ``flips`` each network mirrored.

        Args:
            image: A NIfTI file of FLAIR or of three channels, as for ``predict``.

        Yields:
            Probabilities from 0 to 1, (H, W, D) float32, on the grid of the file.

        Raises:
            PipelineError: The file cannot be used; the message says why.
        """
        flips = (AS_IT_IS, LEFT_RIGHT) if self.flips else (AS_IT_IS,)
        for bundle in self.bundles:
            data = _preprocessed(bundle, Path(image))
            for mirrored in flips:
                yield _probability(bundle, data, mirrored, Path(image))

    def mask_of(self, probability: Map) -> NDArray[np.uint8]:
        """The mask for a probability, by the first bundle's threshold and component rule.

        Args:
            probability: Probabilities from 0 to 1, (H, W, D).

        Returns:
            1 for lesion, 0 elsewhere, (H, W, D).
        """
        import torch
        from monai.transforms import KeepLargestConnectedComponentd

        mask = torch.from_numpy(probability)[None]
        for transform in self.bundles[0].to_mask.transforms:
            if not isinstance(transform, KeepLargestConnectedComponentd):
                mask = transform({"pred": mask})["pred"].to(torch.uint8)
            elif not self.all_components:
                mask = _within_box(transform, mask)
        return np.asarray(mask[0], dtype=np.uint8)


@contextmanager
def _as_file(image: Any, affine: NDArray[np.floating[Any]] | None) -> Iterator[Path]:
    """The NIfTI file of an image: its own, or one that is removed afterwards."""
    refuse_second_affine(image, affine)
    if isinstance(image, (str, Path)) and str(image).lower().endswith(NIFTI_SUFFIXES):
        yield Path(image)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume_image.nii"
        if isinstance(image, (str, Path)):
            path = build_one(Path(image), Path(folder))
        else:
            as_nifti(image, affine).to_filename(path)
        yield path


def _within_box(transform: Any, mask: torch.Tensor) -> torch.Tensor:
    """The result of a component rule. It runs only on the box around marked voxels: a whole volume takes a GB."""
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
    """Mask, probability and volume of the FLAIR abnormality in one image.

    It logs a warning where the image's orientation or voxel size is doubtful. For several images, keep one
    ``Predictor``, because loading takes longer than predicting.

    Args:
        image: A path, an image of nibabel or SimpleITK, a MONAI MetaTensor, or an array, as ``Predictor.predict``
            describes.
        affine: The affine of an array, (4, 4), from voxel indices to mm to the right, anterior, superior (RAS+).
            Without it, the array's rows run to posterior, its columns to the patient's left, and its slices upwards.
        bundles: Names or folders of the bundles, whose probabilities are averaged. The default is the package's own
            three.
        flips: Also predict the left-right mirrored volume, and average both.
        all_components: Keep every connected component of the mask, not only the largest.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None for CUDA if available, else the CPU.
        trust: Also run bundles that are not this project's. Their configs can run any code.

    Returns:
        The prediction on the image's own grid.

    Raises:
        PipelineError: The image cannot be read, or a bundle cannot be loaded.

    Examples:
        >>> import pipeline
        >>> found = pipeline.segment("flair.nii.gz", bundles="basic_unet")
        >>> found.mask.dtype, found.probability.dtype
        (dtype('uint8'), dtype('float32'))

        An array has no voxel size, unless its affine is given:

        >>> import numpy as np
        >>> found = pipeline.segment(np.ones((64, 64, 4)), np.diag([1, 1, 5, 1]), bundles="basic_unet")
        >>> found.mask.shape
        (64, 64, 4)
    """
    predictor = Predictor(bundles, flips=flips, all_components=all_components, device=device, trust=trust)
    with _as_file(image, affine) as path:
        for oddity in oddities(path):
            logger.warning(oddity)
        return predictor.predict(path)


def save_prediction(prediction: VolumePrediction, image: Path, mask: Path, uncertainty: Path) -> None:
    """Write mask and uncertainty on the image's grid. Without an uncertainty, an earlier map is removed.

    Args:
        prediction: The prediction to write.
        image: The NIfTI file that was predicted.
        mask: The NIfTI file to write the mask to.
        uncertainty: The NIfTI file to write the uncertainty map to.
    """
    if prediction.uncertainty is None:
        uncertainty.unlink(missing_ok=True)
    else:
        save_map(prediction.uncertainty, uncertainty, image)
    save_mask(prediction.mask, mask, image)


def disagreement(passes: Sequence[Map]) -> Map:
    """The uncertainty map, (H, W, D) float32: the passes' standard deviation, from 0 (all agree) to 0.5.

    Source: Wang et al., Neurocomputing 338 (2019) for test-time augmentation; Lakshminarayanan et al., NeurIPS 2017 for
    ensembles.

    Args:
        passes: The probabilities of the passes, each (H, W, D) float32, 0 to 1.
    """
    deviation: Map = np.stack(passes).std(axis=0, dtype=np.float32)
    return deviation


def pass_agreement(masks: Sequence[NDArray[Any]]) -> float | None:
    """The mean DSC over all pairs of masks, 0 to 1; None for fewer than two masks, or if all masks are empty.

    It needs no truth. Source: Roy, Conjeti, Navab, Wachinger, NeuroImage 195 (2019), who compare Monte Carlo samples.
    This project compares networks and flips.

    Args:
        masks: The masks of the passes, each (H, W, D), 0 and 1.
    """
    pairs = [(one.astype(bool), two.astype(bool)) for one, two in itertools.combinations(masks, 2)]
    sizes = [(int((one & two).sum()), int(one.sum()) + int(two.sum())) for one, two in pairs]
    agreements = [2 * common / total for common, total in sizes if total]
    return float(np.mean(agreements)) if agreements else None


def is_low(agreement: float | None) -> bool:
    """Whether a mask should be looked at first, by its ``agreement``. None, without any lesion found, is not low."""
    return agreement is not None and agreement < LOW_AGREEMENT


def overlapped(work: Callable[[Item], Result], items: Sequence[Item], name: str) -> list[Result]:
    """The results of ``work`` for all items, in order. It runs on several items at once.

    A network works on one volume while the next volume is read and the previous one is written. After an error no more
    items are started.

    Args:
        work: What to do with an item.
        items: The items.
        name: The label of the progress bar.
    """
    with ThreadPoolExecutor(MAX_VOLUMES_AT_ONCE) as pool:
        waiting = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in progress(waiting, name, "volume")]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _preprocessed(bundle: Bundle, image: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = bundle.preprocessing({"image": str(image)})
    except (RuntimeError, ValueError, OSError) as error:
        refuse_unusable(image)
        cause = error.__cause__ or error
        raise PipelineError(f"{image}: {bundle.name} cannot read it ({cause}). Check the volume.") from error
    return data


def _probability(bundle: Bundle, data: dict[str, Any], mirrored: tuple[int, ...], image: Path) -> Map:
    import torch

    from pipeline.scripts.finite import prediction_fault

    batch = data["image"][None].to(bundle.device)
    with torch.inference_mode():
        with _NETWORK:
            logits = bundle.inferer(batch.flip(mirrored), bundle.network).flip(mirrored)
        # Checked before the sigmoid, which turns an infinite logit into 1.
        if fault := prediction_fault(logits, [image.name]):
            refuse_unusable(image)
            raise PipelineError(f"{image}: {bundle.name}: {fault}")
        # MONAI's engine passes volumes to the postprocessing without the batch dimension.
        probability = bundle.to_probability({**data, "pred": logits[0]})["pred"]
    return np.asarray(probability[0].cpu(), dtype=np.float32)
