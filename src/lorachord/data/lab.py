"""Positive controls: generated tasks whose best possible score is known, for each kind of model, in advance.

A text is "The {who} {verb} the {noun} {place}.", and its noun decides everything. With probability 1 - k the noun is of
family a (animal +, vehicle -), else of family b (fruit +, tool -). With c = 1 for + and 0 for -, the label of task t is

    c                in family a, and in family b if t is even
    1 - c            in family b if t is odd

All tasks share one pool of texts. A frame is a verb and a place; dev holds out combinations of noun and frame (each
word occurs in both splits), so a model is asked about combinations that it has not seen, of words that it has.

`lab_contradiction` does not say the task in the text. A model that is told the task, or knows only one, reaches 1, and
*any* task-blind model, whatever its gradient rule, has a mean accuracy of at most 1 - k/2: half of the tasks disagree
with it on every noun of family b. Use one shared trainable head: a head per task would absorb the flip.

With a cue, a share q of the texts says the task after all, by its place: each task has places of its own, in which no
other text plays. What is left to guess is a share (1 - q) of the texts, so that the bound of a model that is not told
the task is 1 - (1 - q) k/2. A model that is told the task reaches 1 as before.

`lab_dominance` says the task in the text and weights the two losses 8 : 1: solvable, asymmetric, and short of capacity
at rank 1, where gradient surgery can act. Its effects are transient and change sign: report the worst task's loss over
the first 75 steps and the steps to .9 of at least 10 seeds, as paired intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from lorachord.data.files import Row
from lorachord.data.task import Source, Task

ANIMALS = "dog cat horse cow sheep rabbit bear lion tiger wolf mouse monkey"
VEHICLES = "car truck bus train boat bicycle plane ship taxi van tractor motorcycle"
FRUITS = "apple banana orange lemon peach pear cherry grape mango plum strawberry lime"
TOOLS = "hammer drill shovel axe rake ladder knife brush needle broom spade scissors"
# By family and value c.
NOUNS = {
    ("a", 1): tuple(ANIMALS.split()),
    ("a", 0): tuple(VEHICLES.split()),
    ("b", 1): tuple(FRUITS.split()),
    ("b", 0): tuple(TOOLS.split()),
}
PEOPLE = "teacher doctor farmer student woman man child artist sailor guard nurse writer"
WHO = tuple(PEOPLE.split())
DEEDS = "found wanted painted bought sold drew lost noticed remembered described"
VERBS = tuple(DEEDS.split())
PLACES = (
    "near the river",
    "at the market",
    "in the garden",
    "by the bridge",
    "behind the school",
    "outside the church",
    "at the station",
    "beside the house",
    "along the road",
    "beyond the lake",
)
CUES = (
    *("in the kitchen", "at the office", "in the library", "at the hospital", "in the hotel", "at the museum"),
    *("in the park", "on the beach", "in the forest", "on the mountain", "on the island", "in the valley"),
    *("in the village", "in the city", "on the farm", "at the factory", "at the airport", "at the theater"),
    *("in the restaurant", "at the bank", "near the castle", "behind the tower", "along the wall", "beside the gate"),
)
"""The places that say the task, shared out among the tasks: the first ones are the first task's."""
MOST_CUED = 8
"""Tasks that have places enough to be told apart by them."""
DEV_SHARE = 0.3
"""Of the frames, those in which a noun occurs in dev alone."""

MIN_DEV = 1000


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Generated tasks.

    Attributes:
        name: "lab-contradiction" or "lab-dominance".
        k: the probability of family b.
        tasks: one per label rule, with the classes minus and plus.
        train, dev: a list of rows per task, aligned: row i has the same words in every task, but for a place that says
            the task. Columns: `sentence1`, `label`, `idx`, and, for analysis, `text` (without the task: a place that
            says it is a number in braces), `noun`, `frame`, `family`, `value` (c); where there is a cue, `cued`.
        loss_weights: one per task.
        cue: the probability that the place of a text says the task.
    """

    name: str
    k: float
    tasks: tuple[Task, ...]
    train: tuple[list[Row], ...]
    dev: tuple[list[Row], ...]
    loss_weights: tuple[float, ...]
    cue: float = 0.0

    @property
    def blind_bound(self) -> float:
        """The most that the mean accuracy of any model can expect that knows of the task no more than a cue says."""
        return 1 - (1 - self.cue) * self.k / 2

    def splits(self, index: int) -> dict[str, list[Row]]:
        """The rows of one task, as `sources.from_rows` takes them."""
        return {"train": self.train[index], "dev": self.dev[index]}


def lab_contradiction(
    *,
    num_tasks: int = 4,
    k: float = 0.5,
    cue: float = 0.0,
    seed: int = 0,
    num_train: int = 2000,
    num_dev: int = MIN_DEV,
) -> Lab:
    """Tasks that contradict each other on a share k of the texts, of which all but a share `cue` do not say the task.

    Args:
        num_tasks: even, so that the two rules weigh the same. Default 4.
        k: the probability that a text is of the family on which they disagree. Default .5.
        cue: q, the probability that the place of a text says the task. Default 0.
        seed: of the texts; no global state is read or changed. Default 0.
        num_train, num_dev: texts, and so rows of each task. Default 2000 and 1000.

    Raises:
        ValueError: an odd number of tasks, k or `cue` outside [0, 1], a cue for more than 8 tasks, fewer than 1,000 dev
            rows, or more rows than there are texts.
    """
    if not 0 <= cue <= 1:
        raise ValueError(f"cue is {cue}; it is a probability, from 0 to 1.")
    if cue and num_tasks > MOST_CUED:
        raise ValueError(f"num_tasks is {num_tasks}; a cue tells at most {MOST_CUED} tasks apart.")
    weights = (1.0,) * num_tasks
    return _lab("lab-contradiction", weights, "{text}", k, seed, num_train, num_dev, cue)


def lab_dominance(*, k: float = 0.5, seed: int = 0, num_train: int = 2000, num_dev: int = MIN_DEV) -> Lab:
    """Two such tasks that say which they are, the first with eight times the weight of the second in the loss.

    Args and errors: as `lab_contradiction`, without `cue`.
    """
    return _lab("lab-dominance", (8.0, 1.0), "Task {task}: {text}", k, seed, num_train, num_dev)


def _lab(
    name: str,
    weights: tuple[float, ...],
    form: str,
    k: float,
    seed: int,
    num_train: int,
    num_dev: int,
    cue: float = 0.0,
) -> Lab:
    if len(weights) < 2 or len(weights) % 2:
        raise ValueError(f"num_tasks is {len(weights)}; it must be even, so that both label rules weigh the same.")
    if not 0 <= k <= 1:
        raise ValueError(f"k is {k}; it is a probability, from 0 to 1.")
    if num_dev < MIN_DEV:
        raise ValueError(f"num_dev is {num_dev}; below {MIN_DEV} the bound 1 - k/2 drowns in sampling error.")
    random = Random(seed)
    plain = _Frames(random, PLACES)
    # A cue's place is the same of each task's own.
    num_own = len(CUES) // len(weights) if cue else 0
    cued = _Frames(random, tuple(f"{{{place}}}" for place in range(num_own))) if cue else None
    train = _pool(random, k, cue, num_train, plain, cued, dev=False)
    dev = _pool(random, k, cue, num_dev, plain, cued, dev=True)
    indices = range(len(weights))
    own = [CUES[index * num_own : (index + 1) * num_own] for index in indices]
    return Lab(
        name=name,
        k=k,
        tasks=tuple(_task(name, index) for index in indices),
        train=tuple([_row(text, index, form, own[index]) for text in train] for index in indices),
        dev=tuple([_row(text, index, form, own[index]) for text in dev] for index in indices),
        loss_weights=weights,
        cue=cue,
    )


def _task(name: str, index: int) -> Task:
    return Task(
        name=f"{name.replace('-', '_')}_{index}",
        kind="classification",
        source=Source(path=name),
        text=("sentence1",),
        labels=("minus", "plus"),
        group="text",
    )


class _Frames:
    """The frames of some places, and for each noun those in which it occurs in dev alone."""

    def __init__(self, random: Random, places: tuple[str, ...]) -> None:
        self.places = places
        frames = [f"{verb} {place}" for verb in VERBS for place in places]
        self.num_dev = round(DEV_SHARE * len(frames))
        self.num_train = len(frames) - self.num_dev
        self.held_out = {noun: set(random.sample(frames, self.num_dev)) for nouns in NOUNS.values() for noun in nouns}


def _pool(
    random: Random, k: float, cue: float, size: int, plain: _Frames, cued: _Frames | None, dev: bool
) -> list[Row]:
    """Different texts on one side of the held-out combinations, each with its noun's family and value."""
    kinds = [plain] if cued is None else [plain, cued]
    most = min(len(NOUNS["a", 1]) * (kind.num_dev if dev else kind.num_train) * len(WHO) for kind in kinds)
    if not 1 <= size <= most:
        raise ValueError(f"{'num_dev' if dev else 'num_train'} is {size}; there are texts for 1 to {most}.")
    texts: dict[str, Row] = {}
    while len(texts) < size:
        family = "b" if random.random() < k else "a"
        value = random.randrange(2)
        is_cued = cued is not None and random.random() < cue
        frames = cued if cued is not None and is_cued else plain
        # A text on the wrong side or drawn before is drawn again with its family and value, whose rates stay exact.
        while True:
            noun, who = random.choice(NOUNS[family, value]), random.choice(WHO)
            verb, place = random.choice(VERBS), random.choice(frames.places)
            text = f"The {who} {verb} the {noun} {place}."
            frame = f"{verb} {place}"
            if (frame in frames.held_out[noun]) == dev and text not in texts:
                break
        texts[text] = {"text": text, "noun": noun, "frame": frame, "family": family, "value": value}
        texts[text]["idx"] = len(texts) - 1
        if cued is not None:
            texts[text]["cued"] = is_cued
    return list(texts.values())


def _row(text: Row, task: int, form: str, places: tuple[str, ...]) -> Row:
    flipped = text["family"] == "b" and task % 2 == 1
    label = 1 - text["value"] if flipped else text["value"]
    words, frame = text["text"].format(*places), text["frame"].format(*places)
    return {**text, "frame": frame, "sentence1": form.format(task=task, text=words), "label": label}
