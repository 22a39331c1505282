import pytest

from lorachord.data.split import cut, draw, place


def test_places_are_spread_and_depend_on_group_and_seed_alone() -> None:
    places = [place(f"group {index}", 0) for index in range(2000)]
    assert all(0 <= value < 1 for value in places)
    # Three standard errors of a uniform mean.
    assert abs(sum(places) / 2000 - 0.5) < 3 * (1 / 12 / 2000) ** 0.5
    assert place("a", 0) == place("a", 0) != place("a", 1)
    # As computed in another process, where a built-in hash would differ.
    assert place("a", 0) == pytest.approx(0.5765799980744207)


def test_whole_groups_are_drawn_up_to_a_tenth() -> None:
    groups = [f"group {index // 3}" for index in range(300)]
    drawn = draw(groups, 0)
    assert len(drawn) == 30
    assert not {groups[row] for row in drawn} & {groups[row] for row in set(range(300)) - drawn}
    assert drawn == draw(groups, 0) != draw(groups, 1)


def test_the_order_of_rows_does_not_matter() -> None:
    groups = [f"group {index}" for index in range(100)]
    drawn = {groups[row] for row in draw(groups, 5)}
    assert drawn == {groups[::-1][row] for row in draw(groups[::-1], 5)}


def test_two_tasks_agree_on_the_texts_that_they_share() -> None:
    # The second has one and a half times the rows: what the first draws, it draws too.
    small, large = [f"t {i}" for i in range(200)], [f"t {i}" for i in range(300)]
    in_large = draw(large, 0)
    assert sum(row in in_large for row in draw(small, 0)) >= 0.8 * 20


def test_small_and_lumpy_sets_still_give_a_row_to_each_side() -> None:
    assert len(draw(["a", "b", "c"], 0)) == 1
    assert draw(["a"] * 5 + ["b"] * 4, 0) == {5, 6, 7, 8}
    # A group that is larger than a tenth stays in train.
    lumpy = ["big"] * 50 + [f"small {index}" for index in range(50)]
    for seed in range(20):
        assert len(draw(lumpy, seed)) == 10
        assert 0 not in draw(lumpy, seed)


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"3 row\(s\) form 1 group"):
        draw(["a"] * 3, 0)


def test_a_cut_is_a_seeded_choice_in_order() -> None:
    assert cut(5, None, 0) == cut(5, 7, 0) == [0, 1, 2, 3, 4]
    chosen = cut(1000, 100, 0)
    assert len(set(chosen)) == 100
    assert chosen == sorted(chosen) == cut(1000, 100, 0) != cut(1000, 100, 1)
    assert chosen != list(range(100))
