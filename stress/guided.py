"""The same readers as in ``fuzz``, led by coverage: atheris mutates inputs that reached new branches of the code.

    pip install -e '.[fuzz]'; python -m stress.guided --count 14000 --seed 0

This prints one line for each kind of input: tried, failed. An input fails if it raises anything but a
``PipelineError``, or takes more than ten seconds or 2 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

KINDS = ("slices", "names", "volumes", "manifests", "weights")


def fuzz_one(kind: str, count: int, seed: int, folder: Path) -> None:
    """Mutate inputs of one kind and read them. This ends the process.

    Args:
        kind: One of ``KINDS``.
        count: The number of inputs.
        seed: The random seed of the mutations.
        folder: A folder for the inputs, with an empty folder ``work``.
    """
    import atheris

    with atheris.instrument_imports(include=["pipeline"]):
        from pipeline.errors import PipelineError
        from stress.fuzz import kinds
    sound, read = kinds(folder / "work")[kind]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(sound):
        (corpus / str(number)).write_bytes(data)

    def one(data: bytes) -> None:
        with contextlib.suppress(PipelineError):
            read(data)

    limits = [f"-runs={count}", f"-seed={seed + 1}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=8192"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={folder}/", str(corpus)], one)
    atheris.Fuzz()


def guided(count: int, seed: int) -> dict[str, tuple[int, int]]:
    """Test each kind of input in its own process.

    Args:
        count: The number of inputs, all kinds together.
        seed: The random seed of the mutations.

    Returns:
        Kind of input -> (tried, failed).
    """
    found = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "work").mkdir()
            command = [sys.executable, "-W", "ignore", "-m", "stress.guided", "--kind", kind, "--folder", folder]
            command += ["--count", str(count // len(KINDS)), "--seed", str(seed)]
            ended = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
            done = re.search(r"Done (\d+) runs", ended.stderr)
            if ended.returncode or not done:
                print(f"{kind}: {ended.stderr[-3000:]}", file=sys.stderr)
                for path in Path(folder).glob("*-*"):
                    print(path.name, path.read_bytes()[:500], file=sys.stderr)
            found[kind] = (int(done[1]) if done else 1, int(ended.returncode != 0 or not done))
    return found


def main() -> int:
    """Run the harness, print one line for each kind, and return 1 if something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kind:
        fuzz_one(args.kind, args.count, args.seed, args.folder)
    found = guided(args.count, args.seed)
    for kind, (tried, failed) in found.items():
        print(f"| fuzzed by coverage, {kind}, seed {args.seed} | {tried} | {failed} |")
    return any(failed for _, failed in found.values())


if __name__ == "__main__":
    sys.exit(main())
