"""Kills a run at the points where it writes, and at random times; afterwards --resume must give the unbroken run.

    python tests/faults/kill.py [POINTS [RANDOM]]

POINTS write points (default 100) are spread evenly over the methods and each run; RANDOM times (default 20) follow.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lorachord.runs.recipe import recipe_from
from lorachord.runs.train import train
from tests.tiny_data import save_model, tree, write_data
from tests.tiny_models import tiny

METHODS: dict[str, dict[str, Any]] = {
    "ortho_lora": {"method": {"name": "lora", "r": 2}, "surgery": {"rule": "ortho_lora"}},
    "mtl_lora": {"method": {"name": "mtl_lora", "r": 2, "num_ups": 2}},
    "mosld": {"method": {"name": "mosld", "r": 2, "num_experts": 3}},
    "hydralora": {"method": {"name": "hydralora", "r": 2, "num_experts": 2, "noise": 0.1}},
    "mor1e": {"method": {"name": "mor1e", "r1": 2, "r2": 2}},
}


def in_child(action: Callable[[], object], seconds: float | None = None) -> int:
    """Run something in a forked process; it is killed after some seconds, if they are given."""
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def counted(stop_at: int | None, told: Path | None = None) -> None:
    """Count the writes of this process, and kill it before one of them."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wxa")
        if not writes and event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            return
        if told is not None and str(told) in str(arguments[0]):
            return
        seen += 1
        if seen == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if told is not None:
            descriptor = os.open(told, os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, f"{seen:08}".encode())
            os.close(descriptor)

    sys.addaudithook(hook)


TIMED = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], Any, list[str]]:
    """What a run ends with: its adapter, its scores and its log, and its files."""
    metrics = json.loads((run / "metrics.json").read_text())
    scores = {split: metrics[split] for split in ("val", "dev")} | {"steps": metrics["training"]["steps"]}
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores["log"] = [{key: entry[key] for key in entry if key not in TIMED} for entry in log]
    files = sorted(str(path.relative_to(run.parent)) for path in run.parent.rglob("*") if path.is_file())
    return load_file(run / "adapter/adapter_model.safetensors"), scores, files


def same(one: Any, other: Any) -> bool:
    """Whether two runs are one, bit for bit."""
    (left, scores, files), (right, other_scores, other_files) = one, other
    weights = left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    return weights and scores == other_scores and files == other_files


class Kills:
    """Kills of runs of one recipe.

    Args:
        folder: to work in.
        name: of the method, a key of `METHODS`.
        training: of the recipe, in place of six steps of two batches.
    """

    def __init__(self, folder: Path, name: str, **training: Any) -> None:
        self.folder = folder / name
        base = save_model(tiny("bert" if name != "mor1e" else "llama"), self.folder / "base")
        kind = "encoder" if name != "mor1e" else "decoder"
        training = training or {"max_steps": 6, "save_every": 2, "accumulation": 2}
        self.tree = tree(base, "colour", "size", kind=kind, training=training, **METHODS[name])
        self.data = write_data(self.folder / "data", "colour", "size")
        told = self.folder / "told" / "writes"
        assert in_child(lambda: (told.parent.mkdir(), counted(None, told), self.train("whole"))) == 0, name
        self.writes = int(told.read_text())
        self.whole = self.outcome("whole")

    def train(self, name: str, **how: bool) -> None:
        train(recipe_from(self.tree), self.folder / name / "run", data_dir=self.data, **how)

    def outcome(self, name: str) -> Any:
        return outcome(self.folder / name / "run")

    def at_write(self, number: int) -> bool:
        """Kill before a write; whether the resumed run is the unbroken one."""
        return self._resumed(lambda: in_child(lambda: (counted(number), self.train("killed"))))

    def at_time(self, seconds: float) -> bool:
        """Kill after some seconds."""
        return self._resumed(lambda: in_child(lambda: self.train("killed"), seconds))

    def at_call(self, owner: Any, name: str, number: int) -> bool:
        """Kill at a call of a function, the `number`-th from 1."""

        def run() -> None:
            function, calls = getattr(owner, name), 0

            def counting(*args: Any, **keywords: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **keywords)

            setattr(owner, name, counting)
            self.train("killed")

        return self._resumed(lambda: in_child(run))

    def _resumed(self, kill: Callable[[], int]) -> bool:
        shutil.rmtree(self.folder / "killed", ignore_errors=True)
        self.status = kill()
        if in_child(lambda: self.train("killed", resume=True)) != 0:
            return False
        return same(self.outcome("killed"), self.whole)


def main(points: int = 100, times: int = 20) -> int:
    """Kill, resume, compare; the number of runs that were not as the unbroken one."""
    torch.set_num_threads(1)
    wrong = []
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        for name in METHODS:
            kills = Kills(Path(folder), name)
            share = max(1, points // len(METHODS))
            numbers = [1 + index * (kills.writes - 1) // max(1, share - 1) for index in range(share)]
            wrong += [f"{name} at write {number}" for number in numbers if not kills.at_write(number)]
            began = time.monotonic()
            assert in_child(lambda kills=kills: kills.train("timed")) == 0
            length = time.monotonic() - began
            moments = [draw.uniform(0, length) for _ in range(times // len(METHODS))]
            wrong += [f"{name} after {moment:.2f} s" for moment in moments if not kills.at_time(moment)]
            print(f"{name}: {len(numbers)} of {kills.writes} writes, {len(moments)} times", flush=True)
    print("\n".join(["wrong:", *wrong]) if wrong else "every run was resumed bit for bit, or started anew")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
