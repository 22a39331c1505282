"""The faults that an audit of data has found, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lorachord.data.audit import HELD_OUT, SEEN, DataAudit, Shared, SplitAudit

LOPSIDED = 0.95
"""The share of one class from which on it is said."""
RARE = 8
"""Rows of a class below which it is said that it is rare, where classes have more on average."""
SHOWN = 5
"""Pairs of tasks in a sentence."""


def warnings_of(audit: DataAudit) -> list[str]:
    """What someone who trains on the data should know, a sentence or two for each matter; empty where nothing is."""
    found: list[str] = []
    for task, splits in audit.tasks.items():
        found += (f"{task}: {words}" for words in _of_task(splits))
    return [*found, *_shared(audit.shared)]


def _of_task(splits: Mapping[str, SplitAudit]) -> Iterator[str]:
    leaks = [_leak(name, splits[name]) for name in HELD_OUT if name in splits and splits[name].leaked]
    if leaks:
        yield f"{', '.join(leaks)}: a leak, so that scores reward memory; remove them from one of the two"
    odd = [(split.contradictions, _rows(name, split)) for name, split in splits.items() if split.contradictions]
    if odd:
        yield (
            f"{_counted(odd)} have a text that occurs in the same split with another label as well: no model can "
            "answer both; look for mistakes in the labels, or for a column that is not read"
        )
    again = [(split.duplicates, _rows(name, split)) for name, split in splits.items() if split.duplicates]
    if again:
        yield f"{_counted(again)} are duplicates: an earlier row of the split has the same text"
    long = {name: split for name, split in splits.items() if split.lengths and split.lengths.cut}
    if long:
        yield _cut(long)
    yield from _classes(splits)


def _counted(counts: Sequence[tuple[int, str]]) -> str:
    return ", ".join(f"{count:,} of {rows}" for count, rows in counts)


def _rows(name: str, split: SplitAudit) -> str:
    first = "the first " if split.compared < split.rows else ""
    return f"{first}{split.compared:,} {name} rows"


def _leak(name: str, split: SplitAudit) -> str:
    other = f" ({split.leaked_otherwise:,} of them with another label)" if split.leaked_otherwise else ""
    return f"{split.leaked:,} of {_rows(name, split)} are also in {' or '.join(SEEN[name])}{other}"


def _cut(splits: Mapping[str, SplitAudit]) -> str:
    counts = []
    for name, split in splits.items():
        assert split.lengths is not None
        sample = " looked at" if split.lengths.measured < split.rows else ""
        counts.append(f"{split.lengths.cut:,} of {split.lengths.measured:,} {name} rows{sample}")
    lengths = [split.lengths for split in splits.values() if split.lengths is not None]
    worst = max(each.lost for each in lengths)
    return (
        f"{', '.join(counts)} are longer than max_length {lengths[0].limit} and are cut, which loses {worst:.0%} of "
        f"the tokens; the longest row has {max(each.longest for each in lengths):,}: raise model.max_length, or "
        "shorten the texts"
    )


def _classes(splits: Mapping[str, SplitAudit]) -> Iterator[str]:
    train = splits["train"].classes
    unseen = [name for name, count in train.items() if not count]
    if unseen:
        yield f"no row of train has the class {', '.join(unseen)}: it cannot be learned"
    rare = [
        f"{name} ({count})" for name, count in train.items() if 0 < count < RARE <= sum(train.values()) / len(train)
    ]
    if rare:
        yield f"few rows of train have the class {', '.join(rare)}: it is hardly learned"
    alike: dict[str, list[str]] = {}
    for name in train:
        alike.setdefault(" ".join(name.split()).casefold(), []).append(repr(name))
    for names in alike.values():
        if len(names) > 1:
            yield f"the classes {' and '.join(names)} differ in case or spaces alone: are they one?"
    missing = [name for name, count in splits["dev"].classes.items() if not count and train[name]]
    if missing:
        yield f"no row of dev has the class {', '.join(missing)}: nothing is measured of it"
    total = sum(train.values())
    for name, count in train.items():
        if total and LOPSIDED < count / total < 1:
            yield f"{count / total:.1%} of train have the class {name}: accuracy says little, so look at f1 or matthews"


def _shared(pairs: Sequence[Shared]) -> Iterator[str]:
    train = [(f"{' and '.join(pair.tasks)} {pair.train:,}", pair.train) for pair in pairs if pair.train]
    if train:
        yield (
            f"tasks share texts in train ({_listed(train)}): where their answers differ, a model must be told the task"
        )
    held = [(f"{' and '.join(pair.tasks)} {pair.held_out:,}", pair.held_out) for pair in pairs if pair.held_out]
    if held:
        yield (
            f"tasks share texts across splits ({_listed(held)}): a dev or test text of one is in train of the other, a "
            "leak where their answers are related"
        )


def _listed(pairs: list[tuple[str, int]]) -> str:
    shown = [words for words, _ in sorted(pairs, key=lambda pair: -pair[1])[:SHOWN]]
    more = len(pairs) - len(shown)
    return ", ".join([*shown, *([f"and {more} more pairs"] if more else [])])
