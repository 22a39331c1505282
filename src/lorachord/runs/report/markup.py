"""A page as HTML: one file without a network, for wide and narrow screens, keyboards and screen readers."""

from __future__ import annotations

import base64
import html
import json
import re
from hashlib import sha256
from importlib.resources import files
from typing import Any

from lorachord.runs.drawing import Drawing
from lorachord.runs.drawing.style import LIGHT, base_layout, merged
from lorachord.runs.report.contents import Block, Listing, Page, Section, Table, Words
from lorachord.whole import finite

MARK = '<meta name="generator" content="lorachord report">'
"""By which an earlier report is known."""


def as_html(page: Page) -> str:
    """The whole file. Scripts that are not its own, and every request, are forbidden by its policy."""
    from plotly.offline import get_plotlyjs

    folder = files("lorachord.runs.report")
    style, own = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # Without figures the page needs no Plotly.
    scripts = [get_plotlyjs(), own] if page.drawings else [own]
    data = {_id(drawing.name): _data(drawing) for drawing in page.drawings}
    # No text of a user ends the script that it is in.
    plain = json.dumps(finite(data), separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    title = _text(page.title)
    links = "".join(f'<li><a href="#{_section_id(own)}">{_text(own.title)}</a></li>' for own in page.sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{MARK}
<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<div><h1>{title}</h1><p>{_text(page.kind)}</p></div>
<button type="button" id="theme" hidden>Dark</button>
</header>
<nav aria-label="Sections"><ol>{links}</ol></nav>
<main id="main" tabindex="-1">
<noscript><p>Figures need JavaScript; their numbers stand below them as tables.</p></noscript>
{"".join(_section(own) for own in page.sections)}</main>
<footer><p>Written by LoRAchord. Everything is in this file; it makes no request.</p></footer>
<script type="application/json" id="drawings">{plain}</script>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body>
</html>
"""


def _policy(scripts: list[str]) -> str:
    hashes = " ".join(f"'sha256-{base64.b64encode(sha256(own.encode()).digest()).decode()}'" for own in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"


def _data(drawing: Drawing) -> dict[str, Any]:
    layout = merged(base_layout(LIGHT), drawing.layout)
    made: dict[str, Any] = {"title": drawing.title, "data": [dict(trace) for trace in drawing.data], "layout": layout}
    if drawing.frames is not None:
        made["frames"] = {"labels": list(drawing.frames.labels), "values": list(drawing.frames.values)}
    return made


def _section(section: Section) -> str:
    own = _section_id(section)
    inner = "".join(map(_block, section.blocks))
    return f'<section aria-labelledby="{own}"><h2 id="{own}">{_text(section.title)}</h2>\n{inner}</section>\n'


def _block(block: Block) -> str:
    if isinstance(block, Words):
        looks = ' class="lead"' if block.leads else ""
        return f"<p{looks}>{_prose(block.text)}</p>\n"
    if isinstance(block, Listing):
        pre = f'<pre tabindex="0">{_text(block.text)}</pre>'
        return f"<details><summary>{_text(block.caption)}</summary>{pre}</details>\n"
    if isinstance(block, Table):
        made = _table(block.caption, block.rows)
        return f"<details><summary>{_text(block.caption)}</summary>{made}</details>\n" if block.folded else made
    return _figure(block)


def _figure(drawing: Drawing) -> str:
    name, title = _id(drawing.name), _text(drawing.title)
    told = _text(f"{drawing.title}. {drawing.words}")
    slider = ""
    if drawing.frames is not None:
        frames = drawing.frames
        slider = (
            f'<div class="slider"><label for="{name}-slider">{_text(frames.of)}: <output id="{name}-at">'
            f'{_text(frames.labels[0])}</output></label><input type="range" id="{name}-slider" min="0" '
            f'max="{len(frames.labels) - 1}" value="0" aria-valuetext="{_text(frames.labels[0])}" disabled></div>'
        )
    meaning = f'<p class="meaning">{_prose(drawing.meaning)}</p>' if drawing.meaning else ""
    return (
        f'<figure aria-labelledby="{name}-title" aria-describedby="{name}-words" data-drawing="{name}">\n'
        f'<h3 id="{name}-title">{title}</h3>\n<p id="{name}-words">{_text(drawing.words)}</p>\n{slider}'
        f'<div class="plot" id="{name}" role="img" aria-label="{told}"></div>\n{meaning}'
        f"<details><summary>Numbers</summary>{_table(drawing.title, drawing.rows)}</details>\n"
        f'<button type="button" class="save" aria-label="Save as PNG: {title}" hidden>Save as PNG</button>\n</figure>\n'
    )


def _table(caption: str, rows: Any) -> str:
    told = _text(caption)
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in rows[0])
    body = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in row[1:])}</tr>\n'
        for row in rows[1:]
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{told}"><table><caption>{told}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def _prose(text: str) -> str:
    """Text in which names of commands and options stand between backticks."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", _text(text))


def _text(text: str) -> str:
    return html.escape(str(text))


def _section_id(section: Section) -> str:
    """Another than that of any drawing."""
    return f"section-{_id(section.title)}"


def _id(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
