"""What durable checkpoints cost: the time of a checkpoint as a share of its epoch, in one training.

``python benchmarks/checkpoints.py --manifest data_manifest``: each epoch writes a checkpoint and its hash, and waits
until both are on the disk.
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
    parser.add_argument("--steps", type=int, default=100, help="steps of an epoch (default: 100, as in the bundle)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder on the disk to measure (default: a temporary one)")
    return parser


def main() -> None:
    """Measure and print one table."""
    args = arguments().parse_args()
    from ignite.engine import Events
    from monai.bundle import ConfigWorkflow

    with tempfile.TemporaryDirectory(dir=args.out) as out:
        sections = json.loads((args.manifest / "manifest.json").read_text())
        chosen = [
            {key: str(args.manifest / item[key]) for key in ("image", "label")}
            for item in sections["training"][: args.patients]
        ]
        overrides: dict[str, Any] = {"dataset_dir": str(args.manifest), "ckpt_dir": out, "output_dir": out}
        overrides |= {"max_epochs": args.epochs, "steps_per_epoch": args.steps, "val_interval": 10**6}
        config = str(args.bundle / "configs" / "train.json")
        workflow = ConfigWorkflow(
            config, workflow_type="train", logging_file=False, **overrides, **{"train#dataset#data": chosen}
        )
        workflow.initialize()
        training, trainer = (workflow.parser.get_parsed_content(key) for key in ("training", "train#trainer"))
        saver = training.saver
        saves: list[float] = []
        epochs: list[float] = []
        write = type(saver).__call__

        def timed(self: Any, *given: Any, **named: Any) -> None:
            start = time.perf_counter()
            write(self, *given, **named)
            saves.append(time.perf_counter() - start)

        type(saver).__call__ = timed
        started = [0.0]
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda: started.__setitem__(0, time.perf_counter()))
        # This handler runs before that of the checkpoint, which is attached when the workflow runs.
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: epochs.append(time.perf_counter() - started[0]))
        workflow.run()
        size = sum(path.stat().st_size for path in Path(out).glob("*.pt"))
    saves = saves[: len(epochs)]
    shares = [save / epoch for save, epoch in zip(saves, epochs, strict=True)]
    print_table(
        f"Checkpoints of {args.bundle.name}, {size / 1e6:.1f} MB of weights at the end",
        ["what", "time", "of the epoch"],
        [
            [f"epoch of {args.steps} steps", spread(epochs, "s"), "1"],
            [
                "checkpoint, its hash, both brought to the disk",
                spread([1000 * save for save in saves], "ms"),
                f"{max(shares):.4f} at most",
            ],
        ],
    )


if __name__ == "__main__":
    main()
