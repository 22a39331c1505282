"""What is suggested for a word that is not known."""

import pytest

import lorachord as lc
from lorachord.messages import suggest


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("aplha", ["alpha", "r"], "Did you mean 'alpha'?"),
        ("rank", ["alpha", "r"], "Did you mean 'r'?"),
        ("lr", ["learning_rate", "schedule"], "Did you mean 'learning_rate'?"),
        # Where a method has no such word of ours either, all are named.
        ("rank", ["r1", "r2"], "Known: r1, r2."),
        ("quux", [], "Known: none."),
    ],
)
def test_the_nearest_word_is_named(word: str, known: list[str], said: str) -> None:
    assert suggest(word, known) == said


def test_an_unknown_option_names_those_that_people_set() -> None:
    with pytest.raises(ValueError, match="no option 'quux'") as caught:
        lc.LorachordConfig.build("mtl_lora", quux=1)
    assert "num_ups" in str(caught.value)
    assert "target_modules" in str(caught.value)
    assert "base_fingerprint" not in str(caught.value)
