"""Backends that run a network faster on CPUs: ONNX Runtime and OpenVINO."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    import torch

    Network = Callable[[torch.Tensor], torch.Tensor]

TORCH = "torch"
BACKENDS = {
    TORCH: "PyTorch",
    "onnx": "ONNX Runtime, float32, CPU",
    "openvino": "OpenVINO, float32, CPU",
    "openvino-bf16": "OpenVINO, bfloat16 where the CPU has it (AMX, AVX-512), logits to about 3 digits",
}
MAX_SLICES_AT_ONCE = 4
"""Slices that each core gives to OpenVINO in one batch."""
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino"), "openvino-bf16": ("onnx", "openvino")}


def compiled(network: torch.nn.Module, backend: str, channels: int, side_px: int) -> Network:
    """A function that computes what the network computes, (B, C, H, W) float32 -> (B, 1, H, W) float32.

    The result accepts any number B of slices.

    Args:
        network: The network, in evaluation mode.
        backend: A key of ``BACKENDS``. ``torch`` returns the network itself; the others run it on the CPU.
        channels: Channels C of each slice.
        side_px: Height and width of each slice in pixels.

    Raises:
        PipelineError: The backend is not installed, or it cannot run this network.
    """
    if backend == TORCH:
        return network
    import torch

    if not all(map(find_spec, PACKAGES[backend])):
        needed = " ".join(PACKAGES[backend])
        raise PipelineError(f"--backend {backend}: a package is missing. Run: pip install {needed}.")
    try:
        run = _session(_as_onnx(network, channels, side_px), backend)
    except RuntimeError as error:
        raise PipelineError(f"--backend {backend}: cannot run this network ({error}). Use --backend torch.") from error
    return lambda batch: torch.from_numpy(run(batch.contiguous().numpy()))


def _as_onnx(network: torch.nn.Module, channels: int, side_px: int) -> bytes:
    """The network as an ONNX file's bytes."""
    import torch

    buffer = io.BytesIO()
    batch = {0: "batch"}
    # Tracing takes half a second and is enough for these networks. The newer exporter takes five seconds.
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, channels, side_px, side_px),),
            buffer,  # type: ignore[arg-type]
            input_names=["image"],
            output_names=["pred"],
            dynamic_axes={"image": batch, "pred": batch},
            dynamo=False,
        )
    return buffer.getvalue()


def _session(model: bytes, backend: str) -> Callable[[Any], Any]:
    """A function from a NumPy batch to NumPy logits. It uses as many threads as PyTorch."""
    import torch

    threads = torch.get_num_threads()
    if backend == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda batch: session.run(["pred"], {"image": batch})[0]
    import numpy as np
    import openvino

    core = openvino.Core()
    precision = "bf16" if backend == "openvino-bf16" else "f32"
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads, "INFERENCE_PRECISION_HINT": precision}
    queue = openvino.AsyncInferQueue(core.compile_model(core.read_model(model), "CPU", settings), threads)

    def infer(batch: Any) -> Any:
        # Small batches run in parallel, because their data then fits into the caches of the cores.
        result = np.empty((len(batch), 1, *batch.shape[2:]), np.float32)
        queue.set_callback(lambda request, part: part.__setitem__(..., request.get_output_tensor().data))
        for start in range(0, len(batch), MAX_SLICES_AT_ONCE):
            part = slice(start, start + MAX_SLICES_AT_ONCE)
            queue.start_async({"image": batch[part]}, result[part])
        queue.wait_all()
        return result

    return infer
