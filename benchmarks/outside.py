"""Training steps of a library that cannot be installed beside ours: in a process of its own, one when told to.

`started` is our side of the pipe, and `serve` the other, which runs under the Python of another environment. Each line
is one JSON object: `{"name", "build"}` makes a model and is answered by `{}`, `{"name"}` runs one step and is answered
by its loss and its seconds, measured there. So the two sides take turns like any two cases of `harness.interleave`,
under the same load.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryFile
from time import perf_counter
from typing import IO, Any

import torch
from torch import Tensor

Train = Callable[[], float]
"""One training step; returns its loss."""

LEARNING_RATE = 1e-3


def training(trained: Sequence[Tensor], loss_of: Callable[[], Tensor]) -> Train:
    """Forward and backward pass, AdamW, zero_grad: the same for all sides."""
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)

    def train() -> float:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return train


class OutsideError(Exception):
    """The environment cannot be made, or the process in it has failed."""


def environment(folder: Path, *installs: Sequence[str]) -> Path:
    """Make a virtual environment, unless `folder` has it already, and return its Python.

    Args:
        folder: where it lies.
        installs: the arguments of one `pip install` after the other.

    Raises:
        OutsideError: an installation failed; with the end of what pip said.
    """
    python, done = folder / "bin" / "python", folder / "installed.json"
    wanted = json.dumps(installs)
    if done.exists() and done.read_text() == wanted:
        return python
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(folder)], *([*pip, *arguments] for arguments in installs)):
        ended = subprocess.run(command, stdout=PIPE, stderr=subprocess.STDOUT, text=True)
        if ended.returncode:
            raise OutsideError(f"{' '.join(command)} failed:\n{ended.stdout[-1000:]}")
    done.write_text(wanted)
    return python


@dataclass(frozen=True, slots=True)
class Outside:
    """A process that answers; `said` is what it printed besides."""

    process: Popen[str]
    said: IO[str]

    def ask(self, name: str, build: dict[str, Any] | None = None) -> dict[str, float]:
        """One line there and one back."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"name": name} if build is None else {"name": name, "build": build}
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.said.seek(0)
            raise OutsideError(f"its process ended at {name!r}:\n{self.said.read()[-1000:]}")
        found: dict[str, float] = json.loads(answer)
        return found


@contextmanager
def started(python: Path, script: Path) -> Iterator[Outside]:
    """A process that runs a script which calls `serve`, with as many threads as this one."""
    surroundings = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with (
        TemporaryFile("w+") as said,
        Popen([python, script], stdin=PIPE, stdout=PIPE, stderr=said, text=True, env=surroundings) as process,
    ):
        yield Outside(process, said)


def serve(build: Callable[..., tuple[Sequence[Tensor], Callable[[], Tensor]]]) -> None:
    """Answer lines until there are none; `build` makes what is trained, and the loss of one step, from a request."""
    # Answers alone may go to the pipe.
    answers, sys.stdout = sys.stdout, sys.stderr
    steps: dict[str, Train] = {}
    # As `interleave` does: garbage is collected, but not within a step, and what is there before is left out.
    gc.disable()
    for line in sys.stdin:
        request = json.loads(line)
        name = request["name"]
        gc.collect()
        answer = {}
        if "build" in request:
            # What is built anew under a name it had may go.
            gc.unfreeze()
            trained, loss_of = build(**request["build"])
            steps[name] = training(trained, loss_of)
            gc.collect()
            gc.freeze()
        else:
            start = perf_counter()
            loss = steps[name]()
            answer = {"loss": loss, "seconds": perf_counter() - start}
        print(json.dumps(answer), file=answers, flush=True)
