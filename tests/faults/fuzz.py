"""Harms recipes, adapter folders, data files and run folders; each must end in a ValueError or in finite numbers.

    python tests/faults/fuzz.py [--recipes N] [--adapters N] [--data N] [--runs N] [--seed SEED]

Every case draws from a generator of its own, by the seed, the kind and its number, which are named where it fails:
`--only recipes:123` does that case again.
"""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets.utils.logging import disable_progress_bar
from transformers.utils import logging as transformers_logging

from tests.faults.fuzz_kinds import KINDS, Kind

SECONDS = 20
"""After so long a case counts as hanging."""
MEMORY = 6 * 2**30
"""Bytes that a case may have on top of what the process has."""


class Hang(BaseException):
    """A case took too long."""


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang


def outcome(kind: Kind, draw: random.Random) -> tuple[str, str]:
    """How one case ends: `refused`, `fine`, or the fault, and where it was."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        kind.one(draw)
    except (FloatingPointError, ValueError) as error:
        words = str(error)
        # Those of other libraries are no sentences.
        told = type(error) in (ValueError, FloatingPointError) and words
        return ("refused", "") if told else (type(error).__name__, traceback.format_exc())
    except Hang:
        return "hang", traceback.format_exc()
    except Exception as error:
        return type(error).__name__, traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "fine", ""


def fuzz(name: str, numbers: Sequence[int], seed: int, folder: Path) -> Counter[str]:
    """Harm cases of one kind; faults are printed once for each place that they come from."""
    before = signal.signal(signal.SIGALRM, _hang)
    kind, counts, seen = KINDS[name](folder), Counter[str](), Counter[str]()
    began = time.monotonic()
    for number in numbers:
        end, where = outcome(kind, random.Random(f"{seed}:{name}:{number}"))
        counts[end] += 1
        if where:
            place = " | ".join(line.strip() for line in where.splitlines() if line.lstrip().startswith("File"))[-220:]
            seen[f"{end} {place}"] += 1
            if seen[f"{end} {place}"] == 1:
                print(f"{name}:{number} {where[-1800:]}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGALRM, before)
    print(f"{name}: {len(numbers)} in {time.monotonic() - began:.0f} s: {dict(counts)}", flush=True)
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """The number of faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in KINDS:
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one case, as recipes:123")
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    wanted = {name: range(getattr(parsed, name)) for name in KINDS if getattr(parsed, name)}
    if parsed.only:
        name, number = parsed.only.split(":")
        wanted = {name: range(int(number), int(number) + 1)}
    faults = 0
    for name, numbers in wanted.items():
        with tempfile.TemporaryDirectory() as folder:
            counts = fuzz(name, numbers, parsed.seed, Path(folder))
        faults += counts.total() - counts["refused"] - counts["fine"]
    return faults


if __name__ == "__main__":
    sys.exit(bool(main()))
