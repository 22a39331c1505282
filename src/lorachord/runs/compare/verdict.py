"""The sentence at the end of a comparison: which method to take, that none is needed, or what could not be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorachord.runs.compare.compared_rows import HIGH_RANK, NAMED, REFERENCE, SINGLE, UNTRAINED
from lorachord.runs.compare.ladder import Edge

Result = Mapping[str, Any]
SHOWN = 3
"""Rows at most whose open lead is told."""


def verdict(found: Result) -> dict[str, Any]:
    """The verdict on `results`, of which `kind`, `take` (a row, or None) and `text` are the parts.

    Kinds: `take` (a method is ahead of joint LoRA), `tell` (only rows that are told the task are), `rank` (only more
    parameters help), `none` (joint LoRA will do), `unseen` (an advantage that matters may be there, and these seeds
    cannot show it), `open` (one seed, or joint LoRA has no result).
    """
    rows = {row["name"]: row for row in found["rows"]}
    if REFERENCE not in rows or "mean" not in rows[REFERENCE]:
        why = rows.get(REFERENCE, {}).get("failed")
        return _made("open", None, f"No verdict: joint LoRA has no result{f' ({why})' if why else ' yet'}.")
    if len(found["seeds"]) < 2:
        return _made("open", None, "No verdict: one seed has no interval. Compare with --seeds 3 or more.")
    if found["unfinished"]:
        return _made("open", None, f"No verdict yet: {', '.join(found['unfinished'])} are not finished.")
    claims = [claim for claim in found["claims"] if claim["second"] == REFERENCE]
    ahead = [claim for claim in claims if claim["different"] and claim["value"] > 0]
    if not ahead:
        return _none_ahead(found, claims, rows)
    untold = [claim for claim in ahead if not rows[claim["first"]]["told"] and claim["first"] != HIGH_RANK]
    told = [claim for claim in ahead if rows[claim["first"]]["told"]]
    if untold:
        return _take(_best([*untold, *told]), ahead, rows)
    if told:
        return _tell(told, rows)
    [claim] = ahead
    text = f"More parameters help, and no method does: LoRA of {_rank(rows[HIGH_RANK])} is {_by(claim)} ahead of lora."
    return _made("rank", HIGH_RANK, text)


def _made(kind: str, take: str | None, text: str) -> dict[str, Any]:
    return {"kind": kind, "take": take, "text": text}


def _best(claims: Sequence[Result]) -> Result:
    return max(claims, key=lambda claim: claim["value"])


def _by(claim: Result) -> str:
    return f"{claim['value']:.3f} ± {claim['half_width']:.3f}"


def _rank(row: Result) -> str:
    return f"rank {row['method'].get('r')}"


def _take(best: Result, ahead: Sequence[Result], rows: Mapping[str, Result]) -> dict[str, Any]:
    name = best["first"]
    text = [f"Take {name}: its mean is {_by(best)} ahead of joint LoRA."]
    others = [f"{claim['first']} ({_by(claim)})" for claim in ahead if claim is not best]
    if others:
        text.append(f"Also ahead: {', '.join(others)}.")
    if rows[name]["merges"] == "no":
        text.append("It merges into no weights, so it costs time at every request.")
    text += _caveats(rows, name)
    return _made("take", name, " ".join(text))


def _tell(told: Sequence[Result], rows: Mapping[str, Result]) -> dict[str, Any]:
    """Only rows that know the task are ahead: is its name in the text enough?"""
    shown = ", ".join(f"{claim['first']} by {_by(claim)}" for claim in sorted(told, key=lambda each: -each["value"]))
    text = [f"The model must be told the task. Ahead of joint LoRA are, among those that are told, {shown}."]
    text.append("Nothing that is not told the task is ahead.")
    named = next((claim for claim in told if claim["first"] == NAMED), None)
    better = [
        rows[claim["first"]]
        for claim in told
        if (rows[claim["first"]].get("against_named") or {}).get("different")
        and rows[claim["first"]]["against_named"]["value"] > 0
    ]
    if better:
        best = max(better, key=lambda row: row["against_named"]["value"])
        lead = _by(best["against_named"])
        text.append(f"Take {best['name']}: it is also {lead} ahead of LoRA with the task's name in the text.")
        take = best["name"]
    elif named is not None:
        text.append("The cheapest way will do: put the task's name before each text, and train joint LoRA.")
        take = NAMED
    else:
        take = _best(told)["first"]
        text.append(f"Take {take}.")
    return _made("tell", take, " ".join([*text, *_caveats(rows, take)]))


def _none_ahead(found: Result, claims: Sequence[Result], rows: Mapping[str, Result]) -> dict[str, Any]:
    effect = found["effect"]
    behind = [claim["first"] for claim in claims if claim["different"]]
    # What the intervals do not exclude.
    possible = sorted(
        (claim for claim in claims if claim["value"] + claim["half_width"] > effect), key=lambda each: -each["value"]
    )
    text = []
    if possible:
        text.append(f"No row is visibly ahead of joint LoRA, but a lead of {effect:g} is not excluded.")
        if len(found["seeds"]) == 2:
            text.append("Two seeds decide little: compare with --seeds 3 or more.")
        for claim in possible[:SHOWN]:
            needed = claim.get("seeds_for_effect")
            more = f"about {needed} seeds" if needed else "more dev rows"
            lead = f"{claim['value']:+.3f} ± {claim['half_width']:.3f}"
            text.append(f"{claim['first']} has {lead}: to see a lead of {effect:g} takes {more}.")
        text.append("Until then take joint LoRA, which is the simplest.")
        kind = "unseen"
    else:
        top = max((claim["value"] + claim["half_width"] for claim in claims), default=0.0)
        text.append(f"No method is needed: joint LoRA will do. No row is ahead of it by more than {max(top, 0):.3f}.")
        kind = "none"
    if behind:
        text.append(f"Behind it: {', '.join(behind)}.")
    text += _gap(found["gap"], effect)
    return _made(kind, REFERENCE, " ".join([*text, *_caveats(rows, REFERENCE)]))


def _gap(gap: Result | None, effect: float) -> list[str]:
    """Whether the tasks hurt each other: LoRA for each task alone beside joint LoRA."""
    if gap is None or gap["half_width"] is None:
        return []
    difference = f"{gap['value']:+.3f} ± {gap['half_width']:.3f}"
    if gap["different"]:
        word = "ahead: the tasks hurt each other" if gap["value"] > 0 else "behind: the tasks help each other"
        return [f"LoRA for each task alone is {word} ({difference})."]
    if gap["value"] + gap["half_width"] > effect:
        return [f"Whether the tasks hurt each other cannot be told: LoRA for each task alone has {difference}."]
    return [f"LoRA for each task alone is not ahead ({difference}): the tasks do not hurt each other."]


def _caveats(rows: Mapping[str, Result], take: str) -> list[str]:
    """What the reader should know beside."""
    said = []
    if rows[REFERENCE]["edge"] == Edge.CHANCE.value:
        said.append("Joint LoRA stays at chance with every rate that was tried.")
    stuck = [task for task in rows[REFERENCE]["at_chance"] if rows[REFERENCE]["edge"] != Edge.CHANCE.value]
    if stuck:
        said.append(
            f"Joint LoRA is no better than the most frequent answer on {', '.join(stuck)}: train longer before you "
            "rely on this verdict."
        )
    ends = [name for name, row in rows.items() if row.get("edge") == Edge.END.value and name not in (UNTRAINED, SINGLE)]
    if ends:
        said.append(f"The best rate of {', '.join(ends)} is the last that was tried: these rows may do better.")
    failed = [name for name, row in rows.items() if row["failed"]]
    if failed:
        said.append(f"Without a result: {', '.join(failed)}.")
    share = rows[take]["share"] if take in rows else 1.0
    if abs(share - 1) > 0.02 and take != HIGH_RANK:
        said.append(f"{take} has {share:.2f} times the parameters of the budget.")
    return said
