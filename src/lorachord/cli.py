"""The command line. Heavy modules are imported inside the commands."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any


def method_rows() -> list[dict[str, Any]]:
    """One row a method: what `lorachord methods --json` prints."""
    from lorachord.baselines import BASELINES
    from lorachord.core.context import Mixing
    from lorachord.core.registry import all_methods

    rows: list[dict[str, Any]] = [
        {
            "name": cls.method,
            "paper": cls.paper,
            "core": cls.mixing.value,
            "merges": {Mixing.STATIC: "yes", Mixing.TASK: "once per task", Mixing.INPUT: "no"}[cls.mixing],
            "needs_task_ids": cls.mixing is Mixing.TASK,
            "parameters": cls.parameters_formula,
            "options": cls.Config().to_dict(),
        }
        for cls in all_methods().values()
    ]
    formulas = {"peft_lora": "r*(d_in + d_out)", "peft_dora": "r*(d_in + d_out) + d_out"}
    rows += [
        {
            "name": name,
            "paper": paper,
            "core": "static",
            "merges": "yes",
            "needs_task_ids": False,
            "parameters": formulas[name],
            "options": {"r": 8, "alpha": 16.0, "dropout": 0.0, "rslora": False},
        }
        for name, paper in BASELINES.items()
    ]
    return rows


def _methods(arguments: argparse.Namespace) -> int:
    rows = method_rows()
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    columns = {"name": "name", "paper": "paper", "core": "core", "merges": "merges", "needs_task_ids": "task ids"}
    columns["parameters"] = "parameters per layer"
    table = [list(columns.values())]
    for row in rows:
        shown = {**row, "needs_task_ids": "needed" if row["needs_task_ids"] else "-"}
        table.append([str(shown[key]) for key in columns])
    widths = [max(len(line[column]) for line in table) for column in range(len(columns))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `lorachord`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="lorachord", description="Multi-task low-rank adaptation.")
    commands = parser.add_subparsers(dest="command", required=True)
    methods = commands.add_parser("methods", help="list the methods")
    methods.add_argument("--json", action="store_true", help="as JSON, with the options and their defaults")
    methods.set_defaults(run=_methods)
    parsed = parser.parse_args(arguments)
    status: int = parsed.run(parsed)
    return status


if __name__ == "__main__":
    sys.exit(main())
