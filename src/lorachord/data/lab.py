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
DEV_FRAMES = 30
"""Frames, of the hundred, in which a noun occurs in dev alone."""

MIN_DEV = 1000


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Generated tasks.

    Attributes:
        name: "lab-contradiction" or "lab-dominance".
        k: the probability of family b.
        tasks: one per label rule, with the classes minus and plus.
        train, dev: a list of rows per task, aligned: row i has the same words in every task. Columns: `sentence1`,
            `label`, `idx`, and, for analysis, `text` (without the task), `noun`, `frame`, `family`, `value` (c).
        loss_weights: one per task.
    """

    name: str
    k: float
    tasks: tuple[Task, ...]
    train: tuple[list[Row], ...]
    dev: tuple[list[Row], ...]
    loss_weights: tuple[float, ...]

    @property
    def blind_bound(self) -> float:
        """The most that any task-blind model's mean accuracy can expect where the text does not say the task."""
        return 1 - self.k / 2

    def splits(self, index: int) -> dict[str, list[Row]]:
        """The rows of one task, as `sources.from_rows` takes them."""
        return {"train": self.train[index], "dev": self.dev[index]}


def lab_contradiction(
    *, num_tasks: int = 4, k: float = 0.5, seed: int = 0, num_train: int = 2000, num_dev: int = MIN_DEV
) -> Lab:
    """Tasks that contradict each other on a share k of the texts, and do not say which task they are.

    Args:
        num_tasks: even, so that the two rules weigh the same. Default 4.
        k: the probability that a text is of the family on which they disagree. Default .5.
        seed: of the texts; no global state is read or changed. Default 0.
        num_train, num_dev: texts, and so rows of each task. Default 2000 and 1000.

    Raises:
        ValueError: an odd number of tasks, k outside [0, 1], fewer than 1,000 dev rows, or more rows than there are
            texts.
    """
    weights = (1.0,) * num_tasks
    return _lab("lab-contradiction", weights, "{text}", k, seed, num_train, num_dev)


def lab_dominance(*, k: float = 0.5, seed: int = 0, num_train: int = 2000, num_dev: int = MIN_DEV) -> Lab:
    """Two such tasks that say which they are, the first with eight times the weight of the second in the loss.

    Args and errors: as `lab_contradiction`.
    """
    return _lab("lab-dominance", (8.0, 1.0), "Task {task}: {text}", k, seed, num_train, num_dev)


def _lab(name: str, weights: tuple[float, ...], form: str, k: float, seed: int, num_train: int, num_dev: int) -> Lab:
    if len(weights) < 2 or len(weights) % 2:
        raise ValueError(f"num_tasks is {len(weights)}; it must be even, so that both label rules weigh the same.")
    if not 0 <= k <= 1:
        raise ValueError(f"k is {k}; it is a probability, from 0 to 1.")
    if num_dev < MIN_DEV:
        raise ValueError(f"num_dev is {num_dev}; below {MIN_DEV} the bound 1 - k/2 drowns in sampling error.")
    random = Random(seed)
    frames = [f"{verb} {place}" for verb in VERBS for place in PLACES]
    held_out = {noun: set(random.sample(frames, DEV_FRAMES)) for nouns in NOUNS.values() for noun in nouns}
    train = _pool(random, k, num_train, held_out, dev=False)
    dev = _pool(random, k, num_dev, held_out, dev=True)
    indices = range(len(weights))
    return Lab(
        name=name,
        k=k,
        tasks=tuple(_task(name, index) for index in indices),
        train=tuple([_row(text, index, form) for text in train] for index in indices),
        dev=tuple([_row(text, index, form) for text in dev] for index in indices),
        loss_weights=weights,
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


def _pool(random: Random, k: float, size: int, held_out: dict[str, set[str]], dev: bool) -> list[Row]:
    """Different texts on one side of the held-out combinations, each with its noun's family and value."""
    num_frames = DEV_FRAMES if dev else len(VERBS) * len(PLACES) - DEV_FRAMES
    most = len(NOUNS["a", 1]) * num_frames * len(WHO)
    if not 1 <= size <= most:
        raise ValueError(f"{'num_dev' if dev else 'num_train'} is {size}; there are texts for 1 to {most}.")
    texts: dict[str, Row] = {}
    while len(texts) < size:
        family = "b" if random.random() < k else "a"
        value = random.randrange(2)
        # A text on the wrong side or drawn before is drawn again with its family and value, whose rates stay exact.
        while True:
            noun, who = random.choice(NOUNS[family, value]), random.choice(WHO)
            verb, place = random.choice(VERBS), random.choice(PLACES)
            text = f"The {who} {verb} the {noun} {place}."
            frame = f"{verb} {place}"
            if (frame in held_out[noun]) == dev and text not in texts:
                break
        texts[text] = {"text": text, "noun": noun, "frame": frame, "family": family, "value": value}
        texts[text]["idx"] = len(texts) - 1
    return list(texts.values())


def _row(text: Row, task: int, form: str) -> Row:
    flipped = text["family"] == "b" and task % 2 == 1
    label = 1 - text["value"] if flipped else text["value"]
    return {**text, "sentence1": form.format(task=task, text=text["text"]), "label": label}
