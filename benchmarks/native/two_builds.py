"""Two checkouts that write text by turns: how much faster is the native runtime of the second?

    two_builds.py FIRST SECOND [--model gemma|smollm2] [--head int8|int5|int4] [--streams 1] [--context 512]
                  [--turns 100] [--tokens 8]

A host that others use drifts by a third within minutes; turns of a few tokens see the same host, so a change of one or
two percent shows. Each side is a process of its own that imports its own tree, in which ``python -m hasten.native``
has been run; the first one exports the model, both open the same files. Two checkouts of the same commit say how wide
the doubt is. Prints the median of both and the ratio with its interval; keeps nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hasten.measure.duel import Round, speedup

_AGAIN = 150  # tokens behind the prompt, then it is read again: contexts stay comparable
_UNTIMED = 3  # at the beginning of each turn


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("trees", nargs=2, type=Path, metavar="TREE")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--head", default="int8")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=8, help="of a turn")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side is not None:
        write(asked.side, asked)
        return
    with tempfile.TemporaryDirectory() as scratch:
        times = turns([started(tree.resolve(), Path(scratch)) for tree in asked.trees], asked.turns)
    # A turn of both is a round of its own: what the host did meanwhile is in neither's favour.
    faster = speedup([Round(((first,),), ((second,),)) for first, second in zip(*times, strict=True)])
    print(f"{np.median(times[0]):.3f} and {np.median(times[1]):.3f} ms a step", end="; ")
    print(f"the second is {faster.estimate:.3f} times as fast ({faster.low:.3f}-{faster.high:.3f})")


def started(tree: Path, folder: Path) -> subprocess.Popen[str]:
    """A process of one tree that is ready to write."""
    paths = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, __file__, *sys.argv[1:], "--side", str(folder)]
    side = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env={**os.environ, "PYTHONPATH": paths},
    )
    if side.stdout is None or side.stdout.readline().strip() != str(tree):
        raise SystemExit(f"{tree} does not write: see above")
    return side


def turns(sides: list[subprocess.Popen[str]], count: int) -> list[list[float]]:
    """Milliseconds a step of each side, a number a turn; who begins changes."""
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(count):
        for number in (0, 1) if turn % 2 else (1, 0):
            side = sides[number]
            assert side.stdin is not None
            assert side.stdout is not None
            side.stdin.write("go\n")
            side.stdin.flush()
            times[number].append(float(side.stdout.readline()))
    for side in sides:
        side.kill()
    return times


def write(folder: Path, asked: argparse.Namespace) -> None:
    """One side: a turn for each line that comes in."""
    import hasten
    from hasten.measure.host import usable_cores
    from hasten.runtimes import get_runtime
    from hasten.runtimes.generation import Generation
    from hasten.runtimes.native import NativeConfig

    config = NativeConfig(precision="int8-dynamic", head=asked.head)
    exported(folder / "model", config, asked.model)
    cores = usable_cores()
    session = get_runtime("native").open(folder / "model", config, threads=len(cores), cores=cores)
    prompt = np.random.default_rng(0).integers(1000, 20000, (asked.streams, asked.context))
    said, text = _AGAIN, iter(())
    print(Path(hasten.__file__).parents[1], flush=True)
    for _ in sys.stdin:
        if said >= _AGAIN:
            given = {"input_ids": prompt, "attention_mask": np.ones_like(prompt)}
            text, said = (
                session.generate(given, Generation(_AGAIN + 2 * (asked.tokens + _UNTIMED), ignore_ends=True)),
                0,
            )
            next(text)
        for _ in range(_UNTIMED):
            next(text)
        begun = time.perf_counter()
        for _ in range(asked.tokens):
            next(text)
        print((time.perf_counter() - begun) / asked.tokens * 1e3, flush=True)
        said += asked.tokens + _UNTIMED


def exported(folder: Path, config: object, model: str) -> None:
    """The bundle's files, unless the other side has written them."""
    if folder.is_dir():
        return
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "families")]
    from packaged import gguf_of
    from token_profile import session_of

    session, _ = session_of(gguf_of(model, folder.parent), config, folder, task="text-generation")  # type: ignore[arg-type]
    session.close()


if __name__ == "__main__":
    main()
