"""What a fusion method is: options, what it needs to see, and a function from task vectors to one update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from peft import PeftModel

from lorachord.core.config import Settings
from lorachord.fusion.merged import Merged, check_plain
from lorachord.fusion.predictions import Data
from lorachord.fusion.task_vectors import TaskVectors


@dataclass(frozen=True, kw_only=True)
class FusionMethod(Settings, ABC):
    """One way to fuse. A method is one final subclass.

    Attributes:
        name: on the command line.
        paper: title and arXiv id.
        needs: `nothing`; `inputs` of each task; their `entropy`, which a regression has not; or `labels`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[str] = "nothing"

    @abstractmethod
    def merge(self, vectors: TaskVectors, data: Data) -> Merged:
        """One update from those of the tasks.

        Args:
            data: batches of each task in `vectors`; empty for a method that needs nothing.
        """


def merge_vectors(vectors: TaskVectors, method: FusionMethod, data: Data | None = None) -> Merged:
    """Fuse, after what can be known to be wrong has been refused.

    Args:
        data: by task, batches of its inputs (`lorachord.training.fusion_batches.input_batches` makes them). Needed by
            methods that adapt.

    Raises:
        ValueError: data that the method needs are missing, have labels that it must not see, lack labels that it
            needs, or are of a regression, which has no entropy.
    """
    if method.needs == "nothing":
        return method.merge(vectors, {})
    for task in vectors.tasks:
        batches = (data or {}).get(task)
        if not batches:
            raise ValueError(
                f"{method.name} needs data ({method.needs}) of every task, and there are none of {task!r}: give data= "
                "(on the command line, run folders or --recipe, with --data where the files lie)."
            )
        labelled = any(batch.answers is not None for batch in batches)
        if method.needs == "labels" and not all(batch.answers is not None for batch in batches):
            raise ValueError(f"{method.name} realigns on labelled examples, and those of {task!r} have no labels.")
        if method.needs != "labels" and labelled:
            raise ValueError(
                f"{method.name} adapts without labels, and the batches of {task!r} hold them: leave them out."
            )
        if method.needs == "entropy" and any(batch.kind == "number" for batch in batches):
            raise ValueError(
                f"{task!r} is a regression, and a number has no entropy to minimise: leave the task out of "
                f"{method.name}, or take a method without that objective (ties, collapse, r_mtllmf)."
            )
    assert data is not None
    return method.merge(vectors, {task: data[task] for task in vectors.tasks})


def fuse(vectors: TaskVectors, method: FusionMethod, *, data: Data | None = None, rank: int | None = None) -> PeftModel:
    """Make one plain LoRA of several finished adapters.

    Args:
        vectors: see `load_task_vectors`.
        method: `lorachord.fusion.Average()`, `AdaMerging(granularity="layer")`, ...
        data: see `merge_vectors`.
        rank: of the result in each layer. Default: exact where the result has factors, else the ranks of all adapters
            together.

    Returns:
        A `peft.PeftModel` with PEFT's own LoRA, which shares the base's weights: for `lorachord.export_lora`,
        `lorachord.merge` and `save_pretrained`. It has a head for each task where the adapters had heads.

    Raises:
        ValueError: as `merge_vectors` and `Merged.as_lora`.
    """
    check_plain(vectors.others, rank)
    return merge_vectors(vectors, method, data).as_lora(rank)
