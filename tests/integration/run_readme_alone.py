"""Run as a script, in a process that cannot import this package: the code of READMEs, on examples.

    python run_readme_alone.py CASES ANSWERS

CASES holds a JSON list of `folder`, `task` and `examples`, each a list of arguments; ANSWERS gets a list for each case,
of what `predict` returns.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any


def code(text: str, title: str) -> str:
    """The block of code under a heading."""
    found = re.search(rf"^## {re.escape(title)}\n\n```python\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def answers(folder: str, task: str, examples: list[list[Any]]) -> list[Any]:
    text = Path(folder, "README.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for title in ("Load", task):
        exec(code(text, title), names)
    return [names["predict"](*arguments) for arguments in examples]


def main(cases: str, out: str) -> None:
    # Whatever is installed: an import of it fails.
    sys.modules["lorachord"] = None  # type: ignore[assignment]
    found = [answers(**case) for case in json.loads(Path(cases).read_text(encoding="utf-8"))]
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
