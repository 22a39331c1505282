"""The result of a comparison as text for a terminal of 80 columns, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from lorachord.messages import table
from lorachord.runs.compare.compared_rows import FRONT, NAMED, SINGLE, UNTRAINED
from lorachord.runs.compare.ladder import Edge

Result = Mapping[str, Any]
WIDTH = 80
NAMES, CLAIMS = 22, 34
"""Columns of a row's name, and of a claim's two, at most."""
MARKS = {Edge.INTERIOR.value: "", Edge.END.value: "e", Edge.CHANCE.value: "c", Edge.GIVEN.value: "g"}


def terminal(found: Result) -> str:
    """The tables and the verdict, at most 80 columns wide."""
    rows = [row for row in found["rows"] if "mean" in row]
    parts = [table(main_rows(found)), _tasks(found, rows), _notes(found, rows)]
    parts.append("\n".join(textwrap.wrap(found["verdict"]["text"], WIDTH)))
    return "\n\n".join(part for part in parts if part)


def main_rows(found: Result, width: int = NAMES) -> list[list[str]]:
    """The cells of the first table: a line for each row that has scores, below a header.

    Args:
        width: of a row's name at most. Default: as a terminal has room for.
    """
    lines = [["row", "mean", "worst", "against lora", "gap", "rate", "time"]]
    for row in found["rows"]:
        if "mean" not in row:
            continue
        gap = row.get("gap_recovered")
        lines.append(
            [
                _cut(row["name"], width),
                f"{row['mean']:.3f}",
                f"{row['worst']:.3f}",
                _difference(row.get("difference")),
                "" if gap is None else f"{gap['value']:.2f}",
                "" if row["rate"] is None else f"{row['rate']:g}{MARKS[row['edge']]}",
                _time(row["seconds"]),
            ]
        )
    return lines


def _tasks(found: Result, rows: Sequence[Result]) -> str:
    """The score of each task, in as many tables as the width asks for."""
    names = [task["name"] for task in found["tasks"]]
    majority = {task["name"]: task["majority"] for task in found["tasks"]}
    each = max(2, (WIDTH - NAMES) // (max(map(len, names)) + 2))
    blocks = []
    for start in range(0, len(names), each):
        own = names[start : start + each]
        lines = [["row", *own]]
        lines += [[_cut(row["name"]), *(f"{row['scores'][name]:.3f}" for name in own)] for row in rows]
        lines.append(["most frequent answer", *(_or_blank(majority[name]) for name in own)])
        blocks.append(table(lines))
    return "\n\n".join(blocks)


def _notes(found: Result, rows: Sequence[Result]) -> str:
    said = []
    scored = ", ".join(f"{task['name']} {task['metric']}, {task['examples']} rows" for task in found["tasks"])
    mixed = " The mean mixes them." if len({task["metric"] for task in found["tasks"]}) > 1 else ""
    said.append(f"Scores on dev: {scored}.{mixed}")
    if any(row.get("difference") for row in rows):
        count = len(found["seeds"])
        said.append(
            f"Against lora: the difference of means over {count} seeds with its own 95 % interval; * where that leaves "
            "out 0. Empty: one seed alone was run, of a point of the front that val does not prefer."
            if count > 1
            else "One seed: differences have no interval."
        )
        if any(claim["level"] is not None for claim in found["claims"]):
            said.append("Claims: intervals are corrected for the number of claims, and so wider:")
    lines = [textwrap.fill(line, WIDTH) for line in said]
    if len(claims := claim_rows(found)) > 1:
        lines.append(table(claims))
    used = {row["edge"] for row in rows}
    meanings = {
        Edge.END.value: "e: the best rate is the last that was tried",
        Edge.CHANCE.value: "c: at chance with every rate",
        Edge.GIVEN.value: "g: the one rate that was given",
    }
    lines += [text for edge, text in meanings.items() if edge in used]
    # A result that was written before sequences were compared has no such key.
    lines += [
        f"{row['name']}: loss of earlier tasks {row['loss_of_earlier_tasks']:.3f}, from after each one to the end"
        for row in rows
        if row.get("loss_of_earlier_tasks") is not None
    ]
    lines += [f"{row['name']} failed: {row['failed']}" for row in found["rows"] if row["failed"]]
    lines += [
        textwrap.fill(f"{row['name']} has {_options(row)}.", WIDTH, subsequent_indent="  ")
        for row in rows
        if not row["name"].startswith(FRONT) and row["name"] not in (UNTRAINED, SINGLE, NAMED)
    ]
    if found["left_out"]:
        lines.append(f"Left out to save time: {', '.join(found['left_out'])}.")
    return "\n".join(lines)


def claim_rows(found: Result, width: int = CLAIMS) -> list[list[str]]:
    """The cells of the table of claims, with corrected intervals, below a header; `width` as `main_rows`."""
    claims = [claim for claim in found["claims"] if claim["level"] is not None]
    return [["claim", "difference", "visible", ""], *(_claim(claim, width) for claim in claims)]


def _options(row: Result) -> str:
    """The options that were given or solved for."""
    options = [f"{key} {value}" for key, value in row["method"].items() if key != "name"]
    return f"{row['method']['name']} with {', '.join(options)}" if options else f"{row['method']['name']} as it is"


def _claim(claim: Result, width: int = CLAIMS) -> list[str]:
    state = "different" if claim["different"] else "not different"
    interval = f"{claim['value']:+.3f} ± {claim['half_width']:.3f}"
    return [_cut(f"{claim['first']} : {claim['second']}", width), interval, f"{claim['smallest']:.3f}", state]


def _difference(found: Result | None) -> str:
    if found is None:
        return ""
    if found["half_width"] is None:
        return f"{found['value']:+.3f}"
    return f"{found['value']:+.3f} ± {found['half_width']:.3f}{'*' if found['different'] else ''}"


def _cut(name: str, width: int = NAMES) -> str:
    return name if len(name) <= width else f"{name[: width - 3]}..."


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _or_blank(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def columns(found: Result) -> tuple[list[str], list[list[str]]]:
    """The header and the cells of the whole table, for Markdown and CSV."""
    names = [task["name"] for task in found["tasks"]]
    header = ["row", "parameters", "share", "rate", "rate lies", *names, "mean", "worst", "against lora", "half width"]
    header += [
        "smallest visible",
        "gap recovered",
        "forgetting",
        "loss of earlier tasks",
        "seconds",
        "memory MiB",
        "merges",
        "told the task",
    ]
    cells = []
    for row in found["rows"]:
        if "mean" not in row:
            continue
        difference, gap = row.get("difference") or {}, row.get("gap_recovered")
        numbers = [row["scores"][name] for name in names]
        numbers += [row["mean"], row["worst"], difference.get("value"), difference.get("half_width")]
        numbers += [difference.get("smallest"), None if gap is None else gap["value"], row["forgetting"]]
        numbers.append(row.get("loss_of_earlier_tasks"))
        memory = "" if row["memory"] is None else f"{row['memory'] / 2**20:.0f}"
        rate = "" if row["rate"] is None else f"{row['rate']:g}"
        cells.append(
            [row["name"], str(row["parameters"]), f"{row['share']:.3f}", rate, row["edge"] or ""]
            + [_or_blank(number) for number in numbers]
            + [f"{row['seconds']:.0f}", memory, row["merges"], "yes" if row["told"] else "no"]
        )
    return header, cells


def as_csv(found: Result) -> str:
    """A line a row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header, cells = columns(found)
    writer.writerow(header)
    writer.writerows(cells)
    return text.getvalue()


def as_markdown(found: Result) -> str:
    """The verdict, the table, the claims and the options of each row."""
    header, cells = columns(found)
    tasks = ", ".join(f"{task['name']} ({task['metric']}, {task['examples']} dev rows)" for task in found["tasks"])
    lines = [
        "# Comparison",
        "",
        f"**{found['verdict']['text']}**",
        "",
        f"Tasks: {tasks}. Seeds: {len(found['seeds'])}.",
    ]
    lines += ["Differences are against `lora`; `half width` is of their own 95 % interval.", ""]
    lines += _markdown(header, cells)
    claims = [claim for claim in found["claims"] if claim["level"] is not None]
    if claims:
        lines += ["", "Claims, with intervals and p-values corrected for their number by Holm's steps:", ""]
        header = ["claim", "difference", "smallest visible", "", "corrected p"]
        lines += _markdown(header, [[*_claim(claim), f"{claim['adjusted_p']:.3f}"] for claim in claims])
    lines += ["", *(f"- `{row['name']}`: {_options(row)}" for row in found["rows"])]
    return "\n".join(lines) + "\n"


def _markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *escaped)]
