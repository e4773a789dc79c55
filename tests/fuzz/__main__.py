"""Mutate what parsers are given, for a while; print what each stood, fail where one did not.

The mutations are those that found things in parsers of this kind: bits, bytes and words replaced by
what is special, pieces cut, doubled, swapped with another seed's. A find is written to a file, with
the seed of the random numbers, so that it can be had again.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.fuzz.targets import TARGETS, Target

SPECIAL = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63, 2**64 - 1)
INPUT_MAX = 1 << 20
SECONDS_MAX = 5
"""For one input: more is a way to hold the daemon up."""


class TooSlowError(Exception):
    """An input took longer than it may."""


def mutate(data: bytes, seeds: Sequence[bytes], source: random.Random) -> bytes:
    """Change a few things in `data`."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 4, 16))):
        at = source.randrange(len(changed) + 1)
        size = source.choice((1, 2, 4, 8, 64, 1024))
        match source.randrange(7):
            case 0:
                changed[at : at + 1] = bytes([source.randrange(256)])
            case 1:
                width = source.choice((1, 2, 4, 8))
                value = source.choice(SPECIAL) & ((1 << 8 * width) - 1)
                word = value.to_bytes(width, "little")
                changed[at : at + width] = word[:: source.choice((1, -1))]
            case 2:
                del changed[at : at + size]
            case 3:
                changed[at:at] = changed[at : at + size] * source.choice((1, 2, 50))
            case 4:
                other = source.choice(seeds)
                start = source.randrange(len(other) + 1)
                changed[at : at + size] = other[start : start + size]
            case 5:
                changed[at:at] = source.randbytes(size)
            case _:
                del changed[at:]
    return bytes(changed[:INPUT_MAX])


def fuzz(target: Target, seconds: float, seed: int) -> tuple[int, str | None]:
    """Try a target for so long; return how many inputs it took, and what went wrong."""
    source, seeds = random.Random(seed), list(target.seeds())
    corpus, end, count = list(seeds), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = mutate(source.choice(corpus), seeds, source)
        count += 1
        wrong = try_one(target, data)
        if wrong is not None:
            with tempfile.NamedTemporaryFile(prefix="crashd-fuzz-", delete=False) as file:
                file.write(data)
            return count, f"{wrong} (input {count} of seed {seed}, kept as {file.name})"
        if source.random() < 0.02 and len(corpus) < 500:
            corpus.append(data)  # mutations of mutations reach further
    return count, None


def try_one(target: Target, data: bytes) -> str | None:
    """Give a target one input; tell what went wrong."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS_MAX)
    try:
        target.run(data)
    except target.refuses:
        return None  # refused, as it should be
    except TooSlowError:
        return f"took more than {SECONDS_MAX} s"
    except Exception as e:  # boundary: whatever else a parser raises is what we look for
        return f"{type(e).__name__}: {e}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlowError


def main(argv: Sequence[str]) -> int:
    """Fuzz all targets, or those named; 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in all (default: 60)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("target", nargs="*", help="names of targets (default: all)")
    options = parser.parse_args(argv)
    chosen = [t for t in TARGETS if not options.target or t.name in options.target]
    signal.signal(signal.SIGALRM, _too_slow)
    failed = False
    for target in chosen:
        count, wrong = fuzz(target, options.seconds / len(chosen), options.seed)
        failed = failed or wrong is not None
        print(f"{target.name:<18} {count:>9} inputs  {wrong or 'nothing found'}", flush=True)
    print(f"seed {options.seed}, python {sys.version.split()[0]}, {Path.cwd()}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
