"""What a task is: its kind, its source and columns, how a decoder is asked, how it is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorachord.data.metrics import METRICS, WRITTEN, get_metric
from lorachord.data.prompt import check_template, default_template, written
from lorachord.messages import suggest

DEFAULT_METRICS = {
    "classification": "accuracy",
    "pair": "accuracy",
    "regression": "spearman",
    "multiple_choice": "accuracy",
    "generation": "rouge_l",
    "chat": "rouge_l",
}
KINDS = tuple(DEFAULT_METRICS)
CLASSES = ("classification", "pair")
"""The kinds whose answer is one of a few classes, the same in every row."""
SPLITS = ("train", "val", "dev", "test")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from, and what differs there from the task's own description.

    Args:
        path: a local folder with one file a split (train.parquet, dev.jsonl, test.csv), one local file, or a dataset on
            the hub ("hub:nyu-mll/glue", or "nyu-mll/glue" where there is no folder nyu-mll). In a recipe, local paths
            start from the recipe's own folder.
        name: the configuration on the hub ("cola"). A local folder with a name is read as a clone of a hub repository.
        splits: our split -> its name there. Default: train is "train"; dev is "dev" or else "validation"; a local
            folder's "val" and "test" are taken if they are there, a hub dataset's only if named here (many are
            published without labels). None leaves a val or test out that is there: {"test": None}.
        columns: the task's column -> its name there, where it differs. A dotted name reaches inside ("choices.text",
            "output.0"); several names are joined by a space for a text and are the options, in this order, for
            `choices`; an empty name is an empty text.
        skip_unlabelled: leave out rows whose label is missing (an absent or empty value, null, or -1 that is no class),
            and log their number. Default false: such a row is an error.
        label_keys: what is written there for class or option 0, 1, ...; or the column that lists it per row
            ("choices.label"). Default: labels are indices or class names.
    """

    path: str
    name: str | None = None
    splits: Mapping[str, str | None] = field(default_factory=dict)
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    label_keys: str | tuple[str, ...] = ()
    skip_unlabelled: bool = False

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("A source needs a path: a hub name, a local folder or a file.")
        for split in self.splits:
            if split not in SPLITS:
                raise ValueError(f"A source has no split {split!r}. {suggest(split, SPLITS)}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a mixture.

    Args:
        name: unique among the tasks of a run; also its folder's name under a data directory. May be given by position.
        kind: `classification` (one text -> class), `pair` (two texts -> class), `regression` (-> number),
            `multiple_choice` (-> one of the row's options), `generation` (-> text), `chat` (turns -> the assistant's
            next).
        text: one or two columns that make the input; one may be given as a string. Of a chat: the column of its
            messages, the last of which is the assistant's answer; or those of a prompt and its completion, each a text
            or messages.
        source: where its rows are. Default: none, the rows are given in memory or lie under a data directory.
        label: the column of the answer. Default "label". A chat has its answer in its text.
        choices: the column of the row's options, for multiple_choice. Default "choices".
        labels: class names in the order of the label indices; at least two, for classification and pair only. Without a
            source they may be left out: then they are read from the rows, see `labels.infer_labels`.
        answers: what a decoder writes for each class. Default: the class names.
        prompt: what a decoder reads: a `str.format` template over `first`, `second`, `options`. Its answer follows
            after one space. Default: the texts, the options if they are classes, and "Answer:", a line each. A chat
            has none, but the tokenizer's chat template.
        metric: a name in `metrics.METRICS`. Default: accuracy, spearman for regression, rouge_l for written texts.
        group: column(s) whose value keeps rows together when val is drawn from train. Default: the first text.
        max_rows: at most this many rows for train and val together. Default: all.
        prefix: is put before the first text of every row, as in "team: ". Default: nothing.

    Raises:
        ValueError: any of these does not fit the others; the message says what would.
    """

    name: str = field(kw_only=False)
    kind: str
    text: str | tuple[str, ...]
    source: Source | None = None
    label: str = "label"
    choices: str = "choices"
    labels: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    prompt: str = ""
    metric: str = ""
    group: str | tuple[str, ...] | None = None
    max_rows: int | None = None
    prefix: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("A task needs a name.")
        if self.kind not in KINDS:
            raise self._error(f"there is no kind {self.kind!r}. {suggest(self.kind, KINDS)}")
        counts = {"classification": (1,), "pair": (2,)}.get(self.kind, (1, 2))
        if isinstance(self.text, str):
            object.__setattr__(self, "text", (self.text,))
        if not isinstance(self.text, tuple) or len(self.text) not in counts:
            wanted = " or ".join(str(count) for count in counts)
            hint = " For two texts and a class, take the kind pair." if self.kind == "classification" else ""
            raise self._error(f"text is a tuple of {wanted} column name(s) for {self.kind}; got {self.text!r}.{hint}")
        self._check_classes()
        # The defaults that depend on other fields, filled in once so that no reader has to know them.
        object.__setattr__(self, "answers", self.answers or self.labels)
        template = default_template(len(self.text_columns), self.kind in CLASSES) if self.kind != "chat" else ""
        object.__setattr__(self, "prompt", self.prompt or template)
        object.__setattr__(self, "metric", self.metric or DEFAULT_METRICS[self.kind])
        self._check_prompt()
        if self.kind not in get_metric(self.metric).kinds:
            fitting = ", ".join(name for name, metric in METRICS.items() if self.kind in metric.kinds)
            raise self._error(f"{self.metric} does not score {self.kind}; these do: {fitting}.")
        if self.max_rows is not None and self.max_rows < 1:
            raise self._error(f"max_rows is {self.max_rows}; it must be at least 1, or None for all rows.")

    def _error(self, message: str) -> ValueError:
        return ValueError(f"Task {self.name!r}: {message}")

    def _check_classes(self) -> None:
        if self.kind not in CLASSES:
            if self.labels or self.answers:
                raise self._error(f"labels and answers are for classification and pair; this is {self.kind}.")
            return
        if self.needs_labels and self.source is None:
            return
        # One name without its comma is a string, whose letters would pass for names.
        if not isinstance(self.labels, tuple) or len(self.labels) < 2:
            raise self._error(f"{self.kind} needs the names of at least two classes as labels; got {self.labels!r}.")
        for field_name, values in (("labels", self.labels), ("answers", self.answers or self.labels)):
            if len(values) != len(self.labels):
                raise self._error(f"there are {len(values)} answers for {len(self.labels)} labels.")
            if len(set(values)) != len(values):
                raise self._error(f"{field_name} must differ from each other; got {', '.join(values)}.")

    def _check_prompt(self) -> None:
        if self.kind == "chat" and self.prompt:
            raise self._error("a chat is asked by the chat template (model.chat_template): leave out prompt.")
        known = ["first", "second"][: len(self.text_columns)]
        if self.kind not in ("regression", *WRITTEN):
            known.append("options")
        try:
            check_template(self.prompt, known)
        except ValueError as error:
            raise self._error(str(error)) from None

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns of `text`, one or two."""
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def needs_labels(self) -> bool:
        """Whether the names of the classes are still to be read from the rows."""
        return self.kind in CLASSES and self.labels == ()

    @property
    def num_outputs(self) -> int:
        """Outputs of an encoder's head: classes; 1 for a number or an option's score; 0 for written texts (no head).

        Raises:
            ValueError: the classes are not known yet.
        """
        if self.needs_labels:
            raise self._error(
                "its classes are not known yet. Write their names, labels=('...', '...'), or read them from the rows: "
                "lorachord.data.from_rows(task, {'train': rows}).task."
            )
        if self.kind in WRITTEN:
            return 0
        return len(self.labels) or 1

    def options(self, example: Mapping[str, Any]) -> list[str]:
        """The texts among which a decoder chooses, in the order of the label indices; empty if it writes freely."""
        return list(example["choices"]) if self.kind == "multiple_choice" else list(self.answers)

    def render(self, example: Mapping[str, Any]) -> str:
        """The decoder's prompt for an example of normalised columns, without spaces at its ends.

        `options` are shown as "no, maybe or yes", and for multiple_choice one a line.
        """
        if self.kind == "multiple_choice":
            shown = "\n".join(f"- {option}" for option in self.options(example))
        else:
            shown = " or ".join([", ".join(self.answers[:-1]), *self.answers[-1:]])
        return self.prompt.format(first=example["first"], second=example["second"], options=shown).strip()

    def target(self, example: Mapping[str, Any]) -> str:
        """What a decoder should write after the prompt: the answer, the option, the text, or the number."""
        label = example["label"]
        if self.kind in WRITTEN:
            return str(label).strip()
        if self.kind == "regression":
            return written(label)
        return self.options(example)[int(label)]


def check_tasks(tasks: Sequence[Task]) -> None:
    """Whether these can be the tasks of one run.

    Raises:
        ValueError: no task at all, or two of one name.
    """
    if not tasks:
        raise ValueError("No task was given; name at least one.")
    names = [task.name for task in tasks]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"Task names must be unique; repeated: {', '.join(repeated)}. Remove or rename one of each.")
