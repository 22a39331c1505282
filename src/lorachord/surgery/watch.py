"""What surgery sees and does over a run, as arrays in a folder.

>>> import tempfile, numpy as np
>>> from lorachord.surgery.rules import OrthoLora
>>> from lorachord.surgery.operation import Operation
>>> gramians = torch.tensor([[[1.0, -1.0], [-1.0, 4.0]]])
>>> operation = Operation((("layer.0", "down"),), (0, 1), gramians, torch.tensor([[1.25, 2.0]]))
>>> folder = tempfile.mkdtemp()
>>> Watch(folder, tasks=["cola", "sst2"], every=10).see(operation, OrthoLora(), step=10)
>>> watched = read(folder)
>>> watched.cosines[0, 0]                                         # steps, blocks, then tasks by tasks
array([[ 1. , -0.5],
       [-0.5,  1. ]], dtype=float16)
>>> watched.negative.tolist(), watched.moved_in_all.astype(float).round(3).tolist()
([[1.0]], [1.09])
>>> np.load(f"{folder}/step_000010.npz")["moved"].shape           # numpy alone reads a step as well
(1,)

A folder holds `blocks.npz` (the names of blocks and tasks) and a file for each step that was watched. A file appears
whole or not at all, so a killed run leaves a folder that reads, and a resumed one goes on in it.

Shapes: K steps, N blocks, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lorachord.surgery.operation import Operation
from lorachord.surgery.rules import Rule
from lorachord.surgery.significant import Significant
from lorachord.whole import new_file

BLOCKS = "blocks.npz"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Watched:
    """What was watched.

    Attributes:
        steps: of the optimizer, counted from 1, (K,).
        tasks: names, T of them.
        keys: `(layer, "down" or "up")` of the N blocks.
        cosines: between the gradients of two tasks, (K, N, T, T) in float16; NaN where one of them is absent or zero.
        negative: share of negative cosines among the pairs that have one, by block, (K, N).
        significant: share of pairs whose conflict was significant by the rule's own test, over all that it tested,
            (K,); NaN under rules that test nothing.
        moved: how far the rule moved the gradient of a block, |new - sum| / |sum|, (K, N).
        moved_in_all: the same over all blocks, (K,).
    """

    steps: Array
    tasks: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    cosines: Array
    negative: Array
    significant: Array
    moved: Array
    moved_in_all: Array


@final
class Watch:
    """Writes down some of a surgeon's operations.

    Args:
        folder: for the files; made when there is something to write.
        tasks: names, in order.
        every: steps between those that are written; the first is written too. Default 10.
        write: whether this process writes; of several, the first alone. Default true.
    """

    def __init__(self, folder: str | Path, tasks: Sequence[str], every: int = 10, write: bool = True) -> None:
        self.folder, self.tasks, self.every, self.write = Path(folder), tuple(tasks), every, write
        self.begun = False

    def see(self, operation: Operation, rule: Rule, step: int) -> None:
        """Write an operation down, if it is its step's turn.

        Args:
            operation: what the surgeon returned.
            rule: its rule.
            step: of the optimizer, counted from 1. What the folder holds from the first one seen on is of an
                interrupted run, and removed.
        """
        if not self.write:
            return
        if not self.begun:
            self._begin(operation, step)
        if step % self.every == 0 or step == 1:
            _save(self.folder / f"step_{step:06}.npz", {"step": np.array(step), **self._arrays(operation, rule)})

    def _begin(self, operation: Operation, step: int) -> None:
        self.begun = True
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in _steps(self.folder):
            if _step(path) >= step:
                path.unlink()
        _save(self.folder / BLOCKS, {"keys": np.array(operation.keys), "tasks": np.array(self.tasks)})

    def _arrays(self, operation: Operation, rule: Rule) -> dict[str, Array]:
        gramians_NTT = operation.gramians_NTT
        norms_NT = gramians_NTT.diagonal(dim1=-2, dim2=-1)
        known_NTT = (norms_NT.unsqueeze(-1) > 0) & (norms_NT.unsqueeze(-2) > 0)
        pairs_NTT = known_NTT & ~torch.eye(norms_NT.shape[-1], dtype=torch.bool, device=norms_NT.device)
        negative_NTT = pairs_NTT & (gramians_NTT < 0)
        change_NT = operation.weights_NT - 1
        moved_N = torch.einsum("nt,nts,ns->n", change_NT, gramians_NTT, change_NT).clamp_min(0)
        moved_N = moved_N / gramians_NTT.sum((1, 2)).clamp_min(1e-38)
        cosines_NTT = torch.where(known_NTT, operation.cosines, torch.nan)
        everyone = gramians_NTT.new_full((len(gramians_NTT), len(self.tasks), len(self.tasks)), torch.nan)
        present_T = torch.tensor(operation.present, dtype=torch.long, device=everyone.device)
        everyone[:, present_T.unsqueeze(1), present_T] = cosines_NTT
        return {
            "cosines": _array(everyone, np.float16),
            "negative": _array(negative_NTT.sum((1, 2)) / pairs_NTT.sum((1, 2)), np.float32),
            "significant": np.array(_significant(rule), np.float32),
            "moved": _array(moved_N.sqrt(), np.float32),
            "moved_in_all": np.array(operation.moved, np.float32),
        }


def read(folder: str | Path) -> Watched:
    """Everything that a `Watch` has written into a folder.

    Raises:
        ValueError: there is nothing.
    """
    folder = Path(folder)
    paths = _steps(folder)
    if not paths:
        raise ValueError(f"{folder} holds no steps of surgery: it is the folder `surgery` of a run with surgery.")
    with np.load(folder / BLOCKS) as blocks:
        keys = tuple((str(layer), str(factor)) for layer, factor in blocks["keys"])
        tasks = tuple(map(str, blocks["tasks"]))
    names = ("cosines", "negative", "significant", "moved", "moved_in_all")
    parts = []
    for path in paths:
        with np.load(path) as step:
            parts.append({name: step[name] for name in names})
    stacked = {name: np.stack([part[name] for part in parts]) for name in names}
    return Watched(steps=np.array([_step(path) for path in paths]), tasks=tasks, keys=keys, **stacked)


def _significant(rule: Rule) -> float:
    if not isinstance(rule, Significant) or rule.significant_NTT is None:
        return float("nan")
    found_NTT = rule.significant_NTT
    num_tasks = found_NTT.shape[-1]
    return float(found_NTT.sum() / max(1, len(found_NTT) * num_tasks * (num_tasks - 1)))


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.npz"), key=_step)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _save(path: Path, arrays: dict[str, Array]) -> None:
    with new_file(path) as scratch, scratch.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _array(values: Tensor, dtype: Any) -> Array:
    made: Array = values.float().cpu().numpy().astype(dtype)
    return made
