"""Where the time of one training epoch and of one evaluation goes, and the least time that the network needs.

``python benchmarks/where_time_goes.py --manifest data_manifest`` prints three tables, each from its own process. The
least time, or floor, is the number of floating-point operations of the network, divided by the rate of a large matrix
product on this machine. With ``--root DIR`` the first two tables measure another checkout, such as an earlier commit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import print_table, run

HERE = Path(__file__).resolve().parent
PARTS = ("training", "evaluation", "floor")


def main() -> None:
    """Measure each part in its own process, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--manifest", type=Path, default=Path("data_manifest"))
    parser.add_argument("--bundle", default="basic_unet", help="name of the bundle (default: basic_unet)")
    parser.add_argument(
        "--weights", type=Path, help="weights file for the evaluation (default: weights that are not trained)"
    )
    parser.add_argument("--root", type=Path, default=HERE.parent, help="checkout to measure (default: this one)")
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--steps", type=int, default=100, help="steps of the epoch (default: 100)")
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="part to measure; repeat it for several (default: all)"
    )
    parser.add_argument("--worker", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.manifest, args.root = args.manifest.resolve(), args.root.resolve()
    if args.worker:
        print(json.dumps(WORKERS[args.worker](args)))
        return
    given = ["--manifest", str(args.manifest), "--bundle", args.bundle, "--root", str(args.root)]
    given += ["--image-size", str(args.image_size), "--steps", str(args.steps)]
    given += ["--weights", str(args.weights.resolve())] if args.weights else []
    for part in args.only or PARTS:
        command = [sys.executable, "-W", "ignore", __file__, *given, "--worker", part]
        finished = run(command, PYTHONPATH=f"{args.root}{os.pathsep}{HERE}")
        rows = json.loads(finished.output.strip().splitlines()[-1])
        if part != "floor":
            rows.append(
                ["start and end of the process, imports", finished.wall_s - sum(seconds for _, seconds in rows)]
            )
            rows.append(["all", finished.wall_s])
            rows = [[name, f"{seconds:.2f}", f"{seconds / finished.wall_s:.0%}"] for name, seconds in rows]
        print_table(f"{args.bundle}: {TITLES[part]}", HEADS[part], rows)


class Parts:
    """Sums up the seconds of named parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.since = time.perf_counter()

    def ends(self, name: str) -> None:
        """Count the time since the last end under ``name``."""
        now = time.perf_counter()
        self.seconds[name] += now - self.since
        self.since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with its time counted under ``name``."""

        def call(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*given, **named)
            self.seconds[name] += time.perf_counter() - start
            return result

        return call


# --- one epoch, validation included ---------------------------------------------------------------------------------


def training(args: argparse.Namespace) -> list[tuple[str, float]]:
    """The parts of one epoch of the bundle's training, separated by the events of the engine, with their seconds."""
    from ignite.engine import Events
    from monai.bundle import ConfigWorkflow
    from monai.engines.utils import IterationEvents

    parts = Parts()
    with tempfile.TemporaryDirectory() as out:
        overrides: dict[str, Any] = {"dataset_dir": str(args.manifest), "output_dir": out, "ckpt_dir": out}
        overrides |= {"image_size": args.image_size, "max_epochs": 1, "steps_per_epoch": args.steps, "val_interval": 1}
        config = str(args.root / "bundles" / args.bundle / "configs" / "train.json")
        workflow = ConfigWorkflow(config, workflow_type="train", logging_file=False, **overrides)
        workflow.initialize()
        parts.ends("imports")
        trainer = workflow.parser.get_parsed_content("train#trainer")
        parts.ends("volumes preprocessed, network built")
        for event, name in (
            (Events.STARTED, "first checks"),
            (Events.GET_BATCH_STARTED, "handlers"),
            (Events.GET_BATCH_COMPLETED, "slices drawn and augmented"),
            (IterationEvents.FORWARD_COMPLETED, "network: forward"),
            (IterationEvents.LOSS_COMPLETED, "loss"),
            (IterationEvents.BACKWARD_COMPLETED, "network: backward"),
            (Events.ITERATION_COMPLETED, "optimizer"),
            (Events.EPOCH_COMPLETED, "validation"),
        ):
            # This handler must run before the existing ones.
            trainer.add_event_handler(event, parts.ends, name)
            handlers = trainer._event_handlers[event]
            handlers.insert(0, handlers.pop())
        prepare = trainer.prepare_batch

        def prepared(*given: Any, **named: Any) -> Any:
            parts.ends("handlers")
            batch = prepare(*given, **named)
            parts.ends("slices drawn and augmented")
            return batch

        trainer.prepare_batch = prepared
        trainer.run()
        parts.ends("validation")
    del parts.seconds["imports"]
    return list(parts.seconds.items())


# --- one evaluation -------------------------------------------------------------------------------------------------


def evaluation(args: argparse.Namespace) -> list[tuple[str, float]]:
    """The parts of ``lgg-flair evaluate`` on the validation patients, one volume at a time, with their seconds."""
    from against_reference import save_our_weights

    import pipeline.evaluate
    import pipeline.imaging.nifti
    import pipeline.model.bundle
    import pipeline.model.predictor
    import pipeline.scoring.metrics

    parts = Parts()
    load = pipeline.model.bundle.load_bundle

    def loaded(*given: Any, **named: Any) -> Any:
        bundle = load(*given, **named)
        for field, name in (
            ("preprocessing", "volume read and preprocessed"),
            ("inferer", "network"),
            ("to_probability", "probabilities, back to the volume's grid"),
        ):
            object.__setattr__(bundle, field, parts.timed(name, getattr(bundle, field)))
        return bundle

    pipeline.model.bundle.load_bundle = parts.timed("network built, weights read", loaded)
    for module, function, name in (
        (pipeline.imaging.nifti, "load_label", "truth read"),
        (pipeline.model.predictor.Predictor, "mask_of", "threshold and component"),
        (pipeline.model.predictor, "save_mask", "mask written"),
        (pipeline.scoring.metrics, "score_volume", "DSC, HD95, sensitivity"),
    ):
        setattr(module, function, parts.timed(name, getattr(module, function)))
    # The clock cannot separate parts that overlap.
    pipeline.model.predictor.MAX_VOLUMES_AT_ONCE = 1
    with tempfile.TemporaryDirectory() as out:
        weights = args.weights or Path(out) / "weights.pt"
        bundle = args.root / "bundles" / args.bundle
        if not args.weights:
            save_our_weights(weights, bundle)
        given = ["--manifest", args.manifest, "--bundle", bundle, "--weights", weights, "--out", Path(out) / "scores"]
        pipeline.evaluate.main([str(item) for item in given])
    return list(parts.seconds.items())


# --- the floor ------------------------------------------------------------------------------------------------------


def floor(args: argparse.Namespace) -> list[list[str]]:
    """The time of the network only, compared with the arithmetic rate of this machine."""
    import torch
    from monai.bundle import ConfigParser
    from torch.utils.flop_counter import FlopCounterMode

    parser = ConfigParser(json.loads((args.root / "bundles" / args.bundle / "configs" / "train.json").read_text()))
    parser["bundle_root"] = str(args.root / "bundles" / args.bundle)
    for key in ("scripts_path", "keep_memory"):
        parser.get_parsed_content(key)
    device = parser.get_parsed_content("device")
    network = parser.get_parsed_content("network").train()
    batch = torch.randn(16, 3, args.image_size, args.image_size, device=device)

    def forward() -> Any:
        return network(batch)

    def backward() -> Any:
        network(batch).float().mean().backward()

    def median(function: Callable[[], Any], repeats: int = 7) -> float:
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    rows = []
    side = 4096
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(side, side, device=device, dtype=dtype)
        peak = 2 * side**3 / median(lambda matrix=matrix: matrix @ matrix)
        half = torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
        for what, function in (
            ("forward", half(torch.inference_mode()(forward))),
            ("forward and backward", half(backward)),
        ):
            with FlopCounterMode(display=False) as counter:
                function()
            operations = counter.get_total_flops() / len(batch)
            seconds = median(function) / len(batch)
            least = operations / peak
            rows.append(
                [
                    f"{what}, {str(dtype).removeprefix('torch.')}",
                    f"{operations / 1e9:.2f}",
                    f"{peak / 1e9:.0f}",
                    f"{least * 1000:.2f}",
                    f"{seconds * 1000:.2f}",
                    f"{least / seconds:.2f}",
                ]
            )
    return rows


WORKERS: dict[str, Callable[[argparse.Namespace], Any]] = {
    function.__name__: function for function in (training, evaluation, floor)
}
TITLES = {
    "training": "one training epoch, from the start of the process",
    "evaluation": "one evaluation of the validation patients, one volume after the other",
    "floor": "the network only, ms a slice",
}
HEADS = {
    "training": ["part", "seconds", "share"],
    "evaluation": ["part", "seconds", "share"],
    "floor": ["", "GFLOP a slice", "GFLOP/s of a matrix product", "floor, ms", "measured, ms", "share of the rate"],
}

if __name__ == "__main__":
    main()
