"""Ten tasks of commonsense and reading, as plain data; see `suites.py`."""

from __future__ import annotations

from lorachord.data.task import Source, Task

# These publish the right option as its key among the row's own keys, and a test split with labels, which is the one
# that the literature on adapters reports.
_KEYED = {"choices": "choices.text", "label": "answerKey"}
_REPORT_TEST = {"val": "validation", "dev": "test"}


def _arc(name: str) -> Source:
    path = "hub:allenai/ai2_arc"
    return Source(path=path, name=name, splits=_REPORT_TEST, columns=_KEYED, label_keys="choices.label")


def _choice(name: str, source: Source, prompt: str, group: str | None = None) -> Task:
    return Task(name=name, kind="multiple_choice", source=source, text=("question",), prompt=prompt, group=group)


_ASK = "Question: {first}\nAnswer:"
_BOOLQ = {"sentence1": "question", "sentence2": "passage", "label": "answer"}
COMMONSENSE = (
    _choice("cs_arc_easy", _arc("ARC-Easy"), _ASK),
    _choice("cs_arc_challenge", _arc("ARC-Challenge"), _ASK),
    _choice(
        "cs_openbookqa",
        Source(
            path="hub:allenai/openbookqa",
            name="main",
            splits=_REPORT_TEST,
            columns={**_KEYED, "question": "question_stem"},
            label_keys="choices.label",
        ),
        "Complete or answer: {first}\nAnswer:",
    ),
    _choice(
        "cs_piqa",
        # The authors' own copy needs a loading script, which `datasets` no longer runs.
        Source(path="hub:baber/piqa", columns={"question": "goal", "choices": ("sol1", "sol2")}),
        "Goal: {first}\nHow to reach it:",
    ),
    _choice(
        "cs_siqa",
        # As for PIQA.
        Source(
            path="hub:lighteval/siqa",
            columns={"question": ("context", "question"), "choices": ("answerA", "answerB", "answerC")},
            label_keys=("1", "2", "3"),
        ),
        _ASK,
    ),
    _choice(
        "cs_hellaswag",
        Source(path="hub:Rowan/hellaswag", columns={"question": ("activity_label", "ctx"), "choices": "endings"}),
        "Continue the text.\n{first}",
    ),
    _choice(
        "cs_winogrande",
        Source(
            path="hub:allenai/winogrande",
            name="winogrande_l",
            columns={"question": "sentence", "choices": ("option1", "option2"), "label": "answer"},
            label_keys=("1", "2"),
        ),
        "{first}\nWhat does the blank _ stand for?\nAnswer:",
        # Its sentences come in twins with the same two options and opposite answers.
        group="choices",
    ),
    Task(
        name="cs_boolq",
        kind="pair",
        source=Source(path="hub:google/boolq", columns=_BOOLQ),
        text=("sentence1", "sentence2"),
        labels=("false", "true"),
        answers=("no", "yes"),
        prompt="{second}\nQuestion: {first}\nSay {options}.\nAnswer:",
        # Several questions are about one passage.
        group="sentence2",
    ),
    Task(
        name="cs_boolq_nopassage",
        kind="classification",
        source=Source(path="hub:google/boolq", columns=_BOOLQ),
        text=("sentence1",),
        labels=("false", "true"),
        answers=("no", "yes"),
        prompt="Question: {first}\nSay {options}.\nAnswer:",
    ),
    _choice(
        "cs_csqa",
        Source(path="hub:tau/commonsense_qa", columns=_KEYED, label_keys="choices.label"),
        _ASK,
    ),
)
