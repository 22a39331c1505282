"""Fifteen tasks of Super-NaturalInstructions, as plain data; see `suites.py`.

The hub's copies are by one publisher, a repository a task. Seven of these were seen in a list of them; whether all are
there was not tried.
"""

from __future__ import annotations

from lorachord.data.task import Source, Task


def _instruction(name: str) -> Task:
    # The hub's copies hold instruction and input in one column, and a list of right answers.
    source = Source(
        path=f"hub:Lots-of-LoRAs/{name}",
        splits={"val": "valid", "dev": "test"},
        columns={"sentence1": "", "sentence2": "input", "label": "output.0"},
    )
    return Task(
        name=f"superni/{name}",
        kind="generation",
        source=source,
        text=("sentence1", "sentence2"),
        prompt="{first}\n{second}\nAnswer:",
        # The first text is the instruction, the same in every row.
        group="sentence2",
    )


SUPERNI = tuple(
    _instruction(name)
    for name in (
        "task002_quoref_answer_generation",
        "task073_commonsenseqa_answer_generation",
        "task1290_xsum_summarization",
        "task1510_evalution_relation_extraction",
        "task1572_samsum_summary",
        "task1590_diplomacy_text_generation",
        "task1687_sentiment140_classification",
        "task1729_personachat_generate_next",
        "task181_outcome_extraction",
        "task363_sst2_polarity_classification",
        "task511_reddit_tifu_long_text_summarization",
        "task591_sciq_answer_generation",
        "task639_multi_woz_user_utterance_generation",
        "task748_glucose_reverse_cause_event_detection",
        "task875_emotion_classification",
    )
)
