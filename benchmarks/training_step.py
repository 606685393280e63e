"""What the data path and the engine add to a training step: a bundle's step compared with that of the bare network.

``python benchmarks/training_step.py --manifest data_manifest``: one process runs blocks of steps in turn. One kind is
the bundle's own trainer (data, augmentation, engine, handlers, averaging). The other is a bare loop (forward, loss,
backward, optimizer) on one batch that is in memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import print_table, spread

ROOT = Path(__file__).resolve().parent.parent


def arguments() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--manifest", type=Path, default=Path("data_manifest"))
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundles" / "basic_unet")
    parser.add_argument("--patients", type=int, default=20, help="number of training patients (default: 20)")
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--amp", choices=("True", "False"), help="16-bit forward passes (default: as the config decides)"
    )
    parser.add_argument(
        "--deterministic", choices=("True", "False"), help="same bits each time (default: as the config decides)"
    )
    parser.add_argument("--features", type=int, nargs=6, help="features of BasicUNet, such as 32 32 64 128 256 32")
    parser.add_argument("--steps", type=int, default=10, help="steps of a block (default: 10)")
    parser.add_argument("--blocks", type=int, default=7, help="blocks of each kind, after one to warm up (default: 7)")
    return parser


def main() -> None:
    """Measure and print one table."""
    args = arguments().parse_args()
    import torch
    from ignite.engine import Events
    from monai.bundle import ConfigWorkflow

    with tempfile.TemporaryDirectory() as out:
        sections = json.loads((args.manifest / "manifest.json").read_text())
        chosen = [
            {key: str(args.manifest / item[key]) for key in ("image", "label")}
            for item in sections["training"][: args.patients]
        ]
        overrides: dict[str, Any] = {"image_size": args.image_size, "batch_size": args.batch_size, "output_dir": out}
        overrides |= {"dataset_dir": str(args.manifest), "ckpt_dir": out, "max_epochs": args.blocks + 1}
        overrides |= {"steps_per_epoch": args.steps, "val_interval": 10**6, "train#dataset#data": chosen}
        for key in ("amp", "deterministic"):
            overrides |= {key: getattr(args, key) == "True"} if getattr(args, key) else {}
        overrides |= {"network_def#features": args.features} if args.features else {}
        config = str(args.bundle / "configs" / "train.json")
        workflow = ConfigWorkflow(config, workflow_type="train", logging_file=False, **overrides)
        workflow.initialize()
        amp, deterministic = (workflow.parser.get_parsed_content(key) for key in ("amp", "deterministic"))
        trainer, network, optimizer, loss, slices, device, prepare = (
            workflow.parser.get_parsed_content(key)
            for key in (
                "train#trainer",
                "network",
                "optimizer",
                "loss",
                "train#slices",
                "device",
                "train#prepare_batch",
            )
        )
        image, label = prepare(slices[list(range(args.batch_size))], device, False)

        def finished() -> float:
            if device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter()

        def bare_step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cuda", enabled=trainer.amp, **trainer.amp_kwargs):
                value = loss(trainer.inferer(image, network), label)
            value.backward()
            optimizer.step()

        data, engine, bare = [], [], []
        started: list[float] = []

        def bare_block() -> None:
            start = finished()
            for _ in range(args.steps):
                bare_step()
            bare.append((finished() - start) / args.steps)
            numbers = list(range(args.batch_size))
            start = finished()
            for _ in range(args.steps):
                prepare(slices[numbers], device, False)
            data.append((finished() - start) / args.steps)

        trainer.add_event_handler(Events.EPOCH_STARTED, lambda: started.append(finished()))
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda: engine.append((finished() - started[-1]) / args.steps)
        )
        trainer.add_event_handler(Events.EPOCH_COMPLETED, bare_block)
        trainer.run()
    engine, bare, data = engine[1:], bare[1:], data[1:]
    network = f"{args.bundle.name} {args.features or ''}".strip()
    title = (
        f"{network}, {args.image_size} x {args.image_size} px, batches of {args.batch_size}, {device}, amp {amp}, "
        f"deterministic {deterministic}, {args.blocks} blocks of {args.steps} steps"
    )
    show(title, bare, engine, data, args.batch_size)


def show(title: str, bare: list[float], engine: list[float], data: list[float], batch_size: int) -> None:
    """Print the table. Ratios compare neighbouring blocks, so that changes in the machine's speed affect both."""
    rows = []
    for what, times in (
        ("bare network: forward, loss, backward, optimizer", bare),
        ("the bundle's training step", engine),
        ("of it: slices drawn and augmented", data),
    ):
        over = [one / other for one, other in zip(times, bare, strict=True)]
        rates = [batch_size / second for second in times]
        cells = [spread([1000 * second for second in times], "ms"), spread(rates, "slices/s"), spread(over, "")]
        rows.append([what, *cells])
    print_table(title, ["step", "time", "rate", "over the bare network"], rows)


if __name__ == "__main__":
    main()
