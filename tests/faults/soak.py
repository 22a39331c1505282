"""Trains for long with evaluation and checkpoints, and serves four tasks from eight threads; memory must stay flat.

    python tests/faults/soak.py [--minutes M] [--serve M]

M minutes of training (default 120) and of serving (default 10). The exit status is 1 where an answer is wrong, or
where the second half of a part has grown by more than 2 % over its beginning.
"""

import argparse
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import lorachord as lc
from lorachord.runs.log import RunLog
from lorachord.runs.recipe import recipe_from
from lorachord.runs.train import train
from tests.tiny_data import save_model, tree, write_data
from tests.tiny_models import perturb, tiny, token_ids

TASKS = ["a", "b", "c", "d"]
GROWTH = 1.02
SERVED: dict[str, dict[str, Any]] = {
    "mtl_lora": {"r": 4, "num_ups": 2},
    "mixlora": {"r": 2, "num_experts": 4},
    "mor1e": {"r1": 2, "r2": 2},
}


def memory() -> float:
    """Resident megabytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def flat(seen: Sequence[float]) -> bool:
    """Whether the last quarter is as large as the second; the first warms up."""
    quarter = max(1, len(seen) // 4)
    early, late = seen[quarter : 2 * quarter] or seen, seen[-quarter:]
    return sum(late) / len(late) <= GROWTH * sum(early) / len(early)


class Enough(Exception):
    """The time is over."""


def trained(folder: Path, seconds: float) -> bool:
    """Train with evaluation and a checkpoint at every tenth step; whether memory stayed flat."""
    base = save_model(tiny("bert"), folder / "base")
    training = {"max_steps": 10**7, "eval_every": 10, "log_every": 50, "accumulation": 2}
    method = {"name": "mosld", "r": 2, "num_experts": 3, "dropout": 0.1}
    recipe = recipe_from(tree(base, "colour", "size", method=method, training=training, surgery={"rule": "ortho_lora"}))
    data, end = write_data(folder / "data", "colour", "size"), time.monotonic() + seconds
    seen: list[float] = []
    on_log, steps = RunLog.on_log, 0

    def watching(self: RunLog, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        nonlocal steps
        on_log(self, args, state, control, **keywords)
        steps = state.global_step
        seen.append(memory())
        if time.monotonic() > end:
            raise Enough

    with patch.object(RunLog, "on_log", watching):
        try:
            train(recipe, folder / "run", data_dir=data)
        except Enough:
            assert steps, "no step was logged"
    print(
        f"training: {steps} steps, {steps // 10} evaluations and checkpoints in {seconds / 60:.1f} min; memory "
        f"{seen[len(seen) // 4]:.0f} MB after a quarter, {seen[-1]:.0f} MB at the end, {max(seen):.0f} MB at most",
        flush=True,
    )
    return flat(seen)


def serving(method: str) -> Any:
    """A model for four tasks."""
    model = lc.attach(tiny("llama"), method, tasks=TASKS, **SERVED[method])
    if method == "mor1e":
        lc.fit_intuition(model, [{"input_ids": token_ids(num_samples=12, length=5)}])
    perturb(model, 0.5)
    return model.eval()


def served(method: str, seconds: float) -> bool:
    """Answer for four tasks from eight threads; whether every answer was right and memory stayed flat."""
    model, ids = serving(method), token_ids()
    masks = [(torch.arange(7) < 2 + place).expand(4, 7) for place in range(4)]

    def answer(place: int) -> torch.Tensor:
        with torch.no_grad(), lc.on_task(model, TASKS[place], prompt_mask=masks[place]):
            logits: torch.Tensor = model(input_ids=ids).logits
            return logits

    want = [answer(place) for place in range(4)]
    end, counts = time.monotonic() + seconds, [[0, 0] for _ in range(8)]

    def work(thread: int) -> None:
        place = thread
        while time.monotonic() < end:
            place = (place + 1) % 4
            right = torch.allclose(answer(place), want[place], rtol=1e-5, atol=1e-6)
            counts[thread][0 if right else 1] += 1

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    seen = []
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(1.0, seconds / 8))
        seen.append(memory())
    right, wrong = (sum(count[place] for count in counts) for place in (0, 1))
    print(
        f"serving {method}: {right} answers right, {wrong} wrong in {seconds / 60:.1f} min; memory {seen[0]:.0f} MB at "
        f"first, {seen[-1]:.0f} MB at the end",
        flush=True,
    )
    # A thread that fails answers no more.
    return right > 0 and not wrong and all(count[0] for count in counts) and flat(seen)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where all was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--serve", type=float, default=10)
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        fine = [trained(Path(folder), 60 * parsed.minutes)] if parsed.minutes else []
    fine += [served(method, 60 * parsed.serve / len(SERVED)) for method in SERVED if parsed.serve]
    return int(not all(fine))


if __name__ == "__main__":
    sys.exit(main())
