"""Compare this pipeline with the reference program (mateuszbuda/brain-segmentation-pytorch) on the same patients.

``python benchmarks/against_reference.py --reference DIR --data data/kaggle_3m --manifest data_manifest``

DIR is a checkout of the reference program. With current libraries it needs these changes: in transform.py
``channel_axis=-1`` in place of ``multichannel=True``, and a ``Compose`` other than that of torchvision; in inference.py
``np.frombuffer`` in place of ``np.fromstring``. Its pictures need matplotlib. Each measurement has its own process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from measure import Run, print_table, ratio, run, spread

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "bundles" / "basic_unet"
BATCH = 16
PARTS = ("start", "data", "training", "evaluation")


def main() -> None:
    """Measure the parts that were chosen, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--reference", type=Path, required=True, help="checkout of the reference program")
    parser.add_argument("--data", type=Path, required=True, help="the published folder kaggle_3m")
    parser.add_argument(
        "--manifest", type=Path, required=True, help="folder of a manifest of these data, split reference"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each measurement, except the reference's start (default: 3)"
    )
    parser.add_argument(
        "--reference-starts",
        type=int,
        default=1,
        help="runs of the reference's start, which takes minutes and GBs (default: 1)",
    )
    parser.add_argument(
        "--patients",
        type=int,
        default=20,
        help="patients for slices/s, which do not depend on their number (default: 20)",
    )
    parser.add_argument("--batches", type=int, default=8, help="batches for slices/s of training (default: 8)")
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="part to measure; repeat it for several (default: all)"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.reference, args.data, args.manifest = (path.resolve() for path in (args.reference, args.data, args.manifest))
    if args.worker:
        print(json.dumps(WORKERS[args.worker](args)))
        return
    with tempfile.TemporaryDirectory() as out:
        args.out = Path(out)
        args.few = few_patients(args)
        rows = []
        for part in args.only or PARTS:
            for row in MEASUREMENTS[part](args):
                rows.append(row)
                print(*row, sep=" | ", file=sys.stderr, flush=True)
    head = ["what", "reference program", "this pipeline", "times better"]
    title = (
        f"{args.data.name}: the reference program (its start and evaluation {args.reference_starts} times) and this "
        f"pipeline (all {args.repeats} times); slices/s on {args.patients} patients, {args.batches} batches of {BATCH}"
    )
    print_table(title, head, rows)


def few_patients(args: argparse.Namespace) -> dict[str, Path]:
    """Make folders of links to the ten validation patients (``ten``), and to some training patients (``few``)."""
    sections = json.loads((args.manifest / "manifest.json").read_text())
    chosen = {
        "ten": [item["patient"] for item in sections["validation"]],
        "few": [item["patient"] for item in sections["training"][: args.patients]],
    }
    for name, patients in chosen.items():
        for patient in patients:
            folder = args.out / name / patient
            folder.mkdir(parents=True)
            for file in (args.data / patient).iterdir():
                (folder / file.name).symlink_to(file)
    return {name: args.out / name for name in chosen}


def worker(name: str, args: argparse.Namespace, data: Path | None = None, cache: str = "") -> tuple[Run, Any]:
    """Run one worker in its own process, and return the process and what the worker measured itself."""
    command = [sys.executable, "-W", "ignore", __file__, "--worker", name, "--reference", str(args.reference)]
    command += ["--data", str(data or args.data), "--manifest", str(args.manifest), "--patients", str(args.patients)]
    command += ["--batches", str(args.batches), "--cache", cache, "--started", str(time.time())]
    finished = run(command)
    return finished, json.loads(finished.output.strip().splitlines()[-1])


# --- time to the first training batch, and memory -------------------------------------------------------------------


def measure_start(args: argparse.Namespace) -> Iterator[list[str]]:
    """Time to the first batch: from TIFFs; again with a manifest, which the reference does not have; and memory."""
    theirs = [worker("reference_start", args) for _ in range(args.reference_starts)]
    tiffs, ours = [], []
    for number in range(args.repeats):
        out = args.out / f"manifest_{number}"
        tiffs.append(run([sys.executable, "-m", "pipeline.manifest", str(args.data), "--out", str(out)]).wall_s)
        ours.append(worker("our_start", args))
        shutil.rmtree(out)
    cache = str(args.out / "cache")
    cached = [worker("our_start", args, cache=cache)[1] for _ in range(args.repeats + 1)][1:]
    reference = [first for _, first in theirs]
    built = [first for _, first in ours]
    for what, times in (
        ("from TIFFs", [sum(pair) for pair in zip(tiffs, built, strict=True)]),
        ("again: from a built manifest", built),
        ("again: and a cache on disk", cached),
    ):
        yield [f"first training batch, {what}", spread(reference), spread(times), ratio(reference, times)]
    peaks = [[finished.peak_mb for finished, _ in runs] for runs in (theirs, ours)]
    yield ["peak memory of training on all patients", *(spread(peak, "MB") for peak in peaks), ratio(*peaks)]


def reference_start(args: argparse.Namespace) -> float:
    """Seconds of the reference to its first batch, with its validation volumes; then two steps, to measure memory."""
    modules = reference_modules(args)
    # Its train.py builds both datasets before it trains.
    train = modules.dataset.BrainSegmentationDataset(str(args.data), subset="train", transform=augmentation(modules))
    modules.dataset.BrainSegmentationDataset(str(args.data), subset="validation", random_sampling=False)
    batches = iter(reference_loader(train, 0))
    image, label = next(batches)
    first = time.time() - args.started
    step = reference_step(modules)
    step(image, label)
    step(*next(batches))
    return first


def our_start(args: argparse.Namespace) -> float:
    """Seconds of the bundle's training to its first batch. It reads its validation volumes later, in the validation."""
    few = {"max_epochs": 1, "steps_per_epoch": 2, "val_interval": 1}
    workflow = our_workflow(args, cache_dir=args.cache or None, **few)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    first: list[float] = []
    prepare = trainer.prepare_batch
    trainer.prepare_batch = lambda *given, **named: (prepare(*given, **named), first.append(time.time()))[0]
    trainer.run()
    return first[0] - args.started


# --- slices a second ------------------------------------------------------------------------------------------------


def measure_data(args: argparse.Namespace) -> Iterator[list[str]]:
    """Slices that are drawn and augmented only, at the reference's size, with its better number of loader processes."""
    theirs = [max(worker("reference_data", args, args.few["few"])[1]) for _ in range(args.repeats)]
    ours = [worker("our_data", args)[1] for _ in range(args.repeats)]
    yield ["data path only, 256 px", spread(theirs, "slices/s"), spread(ours, "slices/s"), ratio(ours, theirs)]


def reference_data(args: argparse.Namespace) -> list[float]:
    """Slices a second of the reference's data path: in one process, and with two loader processes."""
    modules = reference_modules(args)
    dataset = modules.dataset.BrainSegmentationDataset(str(args.data), subset="all", transform=augmentation(modules))
    return [rate(endless(reference_loader(dataset, workers)), 12) for workers in (0, 2)]


def our_data(args: argparse.Namespace) -> float:
    """Slices a second of this pipeline's loader and random transforms."""
    workflow = our_workflow(args, image_size=256, steps_per_epoch=120)
    loader, prepare, device = (
        workflow.parser.get_parsed_content(key) for key in ("train#dataloader", "train#prepare_batch", "device")
    )
    return rate((prepare(batch, device, False) for batch in loader), 100)


def rate(batches: Iterator[Any], count: int) -> float:
    """Slices a second over ``count`` batches. Two batches before them are not counted."""
    for _ in range(2):
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.perf_counter() - start)


def endless(loader: Any) -> Iterator[Any]:
    """The batches of a loader, epoch after epoch without end."""
    while True:
        yield from loader


def measure_training(args: argparse.Namespace) -> Iterator[list[str]]:
    """Training speed with the same network, BasicUNet, in the loops of both programs."""
    theirs = [max(worker("reference_training", args, args.few["few"])[1]) for _ in range(args.repeats)]
    for precision in ("float32", "bfloat16"):
        ours = [worker(f"our_training_{precision}", args)[1] for _ in range(args.repeats)]
        what = f"training, the same network (BasicUNet), 256 px, here in {precision}"
        yield [what, spread(theirs, "slices/s"), spread(ours, "slices/s"), ratio(ours, theirs)]


def reference_training(args: argparse.Namespace) -> list[float]:
    """Slices a second of the reference's training loop: in one process, and with two loader processes."""
    modules = reference_modules(args)
    dataset = modules.dataset.BrainSegmentationDataset(str(args.data), subset="all", transform=augmentation(modules))
    step = reference_step(modules)
    loaders = [endless(reference_loader(dataset, workers)) for workers in (0, 2)]
    return [rate((step(*batch) for batch in loader), args.batches) for loader in loaders]


def our_training_float32(args: argparse.Namespace) -> float:
    """Slices a second of the bundle's trainer in float32."""
    return our_training(args, amp=False)


def our_training_bfloat16(args: argparse.Namespace) -> float:
    """Slices a second of the bundle's trainer in bfloat16, the default on CPUs with instructions for it."""
    return our_training(args, amp=True)


def our_training(args: argparse.Namespace, *, amp: bool) -> float:
    """Slices a second of the bundle's trainer, with forward passes in bfloat16 if ``amp`` is true."""
    from ignite.engine import Events

    workflow = our_workflow(args, image_size=256, max_epochs=1, steps_per_epoch=args.batches + 2, amp=amp)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    times: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: times.append(time.perf_counter()))
    trainer.run()
    return args.batches * BATCH / (times[-1] - times[1])


# --- evaluation -----------------------------------------------------------------------------------------------------


def measure_evaluation(args: argparse.Namespace) -> Iterator[list[str]]:
    """Evaluation time of the ten validation patients. The reference also draws a picture of each slice."""
    weights = args.out / "weights.pt"
    save_our_weights(weights)
    command = [sys.executable, "-W", "ignore", "-m", "pipeline.evaluate", "--manifest", str(args.manifest), "--weights"]
    command += [str(weights), "--bundle", str(BUNDLE), "--protocol", "reference", "--out"]
    ours = [run([*command, str(args.out / f"scores_{number}")]).wall_s for number in range(args.repeats)]
    whole = [worker("reference_evaluation", args, args.few["ten"]) for _ in range(args.reference_starts)]
    theirs = [finished.wall_s for finished, _ in whole]
    yield [
        "evaluation of the ten, its U-Net and pictures, our BasicUNet",
        spread(theirs),
        spread(ours),
        ratio(theirs, ours),
    ]
    theirs = [finished.wall_s - pictures for finished, (pictures, _) in whole]
    yield ["the same without its pictures", spread(theirs), spread(ours), ratio(theirs, ours)]
    same = [finished.wall_s - pictures - network for finished, (pictures, network) in whole]
    yield ["the same without its pictures and its network's time", spread(same), spread(ours), ratio(same, ours)]


def save_our_weights(path: Path, bundle: Path = BUNDLE) -> None:
    """Write weights that are not trained and mark few voxels. The time does not depend on the values."""
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    parser["bundle_root"] = str(bundle)
    network = parser.get_parsed_content("network_def")
    torch.nn.init.constant_([*network.parameters()][-1], -3.0)
    torch.save(network.state_dict(), path)


def reference_evaluation(args: argparse.Namespace) -> list[float]:
    """Run its inference.py with a U-Net that marks about 1 % of the pixels; seconds of pictures and network."""
    import torch

    modules = reference_modules(args)
    import inference

    network = modules.unet.UNet()
    seconds = {"pictures": 0.0, "network": 0.0}
    volume = torch.randn(4, 3, 256, 256)
    network.eval()
    with torch.inference_mode():
        logit = torch.logit(network(volume))
        network.conv.bias -= torch.quantile(logit.flatten()[:1_000_000], 0.99)

    def timed(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*given, **named)
            seconds[kind] += time.perf_counter() - start
            return result

        return call

    with tempfile.TemporaryDirectory() as out:
        torch.save(network.state_dict(), f"{out}/unet.pt")
        for name in ("imsave", "gray2rgb", "outline", "plot_dsc"):
            setattr(inference, name, timed(getattr(inference, name), "pictures"))
        inference.UNet.forward = timed(inference.UNet.forward, "network")
        given = {"device": "cpu", "weights": f"{out}/unet.pt", "images": str(args.data), "image_size": 256}
        given |= {"batch_size": 32, "predictions": f"{out}/predictions", "figure": f"{out}/dsc.png"}
        inference.main(SimpleNamespace(**given))
    return [seconds["pictures"], seconds["network"]]


# --- the two programs -----------------------------------------------------------------------------------------------


def reference_modules(args: argparse.Namespace) -> SimpleNamespace:
    """The modules of the reference program."""
    sys.path.insert(0, str(args.reference))
    import dataset
    import loss
    import transform
    import unet

    return SimpleNamespace(dataset=dataset, loss=loss, transform=transform, unet=unet)


def augmentation(modules: SimpleNamespace) -> Any:
    """The augmentation of the reference program, with the defaults of its train.py."""
    return modules.transform.transforms(scale=0.05, angle=15, flip_prob=0.5)


def reference_loader(dataset: Any, workers: int) -> Any:
    """A loader as the train.py of the reference program builds it."""
    from torch.utils.data import DataLoader

    return DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers)


def reference_step(modules: SimpleNamespace) -> Callable[[Any, Any], float]:
    """A function for one training step of the reference, with this pipeline's network and a sigmoid behind it."""
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser(json.loads((BUNDLE / "configs" / "train.json").read_text()))
    network = torch.nn.Sequential(parser.get_parsed_content("network_def"), torch.nn.Sigmoid()).train()
    dice, optimizer = modules.loss.DiceLoss(), torch.optim.Adam(network.parameters(), lr=1e-4)

    def step(image: Any, label: Any) -> float:
        optimizer.zero_grad()
        value = dice(network(image), label)
        value.backward()
        optimizer.step()
        return float(value.item())

    return step


def our_workflow(args: argparse.Namespace, **overrides: Any) -> Any:
    """The bundle's training workflow, initialised but with no object built yet."""
    from monai.bundle import ConfigWorkflow

    out = tempfile.mkdtemp()
    folders = {"dataset_dir": str(args.manifest), "ckpt_dir": out, "output_dir": out, "val_interval": 10**6}
    overrides = {"batch_size": BATCH, **folders, **overrides}
    config = str(BUNDLE / "configs" / "train.json")
    workflow = ConfigWorkflow(config, workflow_type="train", logging_file=False, **overrides)
    workflow.initialize()
    return workflow


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], Iterator[list[str]]]] = {
    "start": measure_start,
    "data": measure_data,
    "training": measure_training,
    "evaluation": measure_evaluation,
}
WORKERS: dict[str, Callable[[argparse.Namespace], Any]] = {
    function.__name__: function
    for function in (
        reference_start,
        our_start,
        reference_data,
        our_data,
        reference_training,
        our_training_float32,
        our_training_bfloat16,
        reference_evaluation,
    )
}

if __name__ == "__main__":
    main()
