"""Strict YAML: what it lets through, and how it says no."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pydantic
import pytest

from lorachord.runs.parts import STRICT
from lorachord.runs.strict import build, load_yaml, with_settings


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Inner:
    size: int = 1
    rate: float = 0.5
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Listed:
    """As `data.task.Task` is: a dataclass of the standard library inside pydantic's."""

    title: str
    places: Mapping[str, str] = field(default_factory=dict)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Outer:
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    listed: tuple[Listed, ...] = ()
    free: dict[str, object] = field(default_factory=dict)


def refused(text: str, kind: type = Outer) -> str:
    with pytest.raises(ValueError, match=r"^here:") as caught:
        build(kind, load_yaml(text, "here"), "here")
    return str(caught.value)


# Reading YAML


@pytest.mark.parametrize(
    ("text", "number"), [("1e-3", 1e-3), ("5E2", 500.0), ("-2e+3", -2000.0), ("1.5e3", 1500.0), ("3", 3), ("0.1", 0.1)]
)
def test_a_number_with_an_exponent_is_a_number(text: str, number: float) -> None:
    found = load_yaml(text, "here")
    assert found == number
    assert type(found) is type(number)


@pytest.mark.parametrize("text", ["e3", "1e", "1e-3x", "'1e-3'", "v1e3"])
def test_what_only_looks_like_a_number_with_an_exponent_is_a_text(text: str) -> None:
    assert load_yaml(text, "here") == text.strip("'")


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [("a: 1\nb: 2\na: 3", "a", 1), ("x:\n  - c: 1\n    b: 1\n    c: 1", "c", 2), ("{a: 1, a: 1}", "a", 1)],
)
def test_a_repeated_key_is_refused_at_any_depth_with_its_line(text: str, key: str, line: int) -> None:
    with pytest.raises(ValueError, match=rf"^here: repeated key {key} in the mapping at line {line}"):
        load_yaml(text, "here")


@pytest.mark.parametrize(
    "text", ["a: [1, 2", "a: b: c", "\tx: 1", "!!python/object:os.system {}", "&a {*a : 1}", "\x00"]
)
def test_what_is_no_plain_yaml_is_an_error_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"^here: "):
        load_yaml(text, "here")


def test_the_same_key_in_different_mappings_is_welcome() -> None:
    assert load_yaml("a: {x: 1}\nb: {x: 2}\n", "here") == {"a": {"x": 1}, "b": {"x": 2}}


# Building typed trees


def test_a_tree_is_built_with_lists_as_tuples_and_whole_numbers_as_floats() -> None:
    made = build(Outer, {"inner": {"rate": 1, "names": ["a", "b"]}, "listed": [{"title": "t"}]}, "here")
    assert made == Outer(inner=Inner(rate=1.0, names=("a", "b")), listed=(Listed(title="t"),))
    assert isinstance(made.inner.rate, float)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("iner: {}", "iner: there is no such key. Did you mean 'inner'?"),
        ("inner: {sise: 2}", "inner.sise: there is no such key. Did you mean 'size'?"),
        ("maybe: {sise: 2}", "maybe.sise: there is no such key. Did you mean 'size'?"),
        ("listed: [{title: a}, {title: b, titel: c}]", "listed.1.titel: there is no such key. Did you mean 'title'?"),
        ("inner: {zzz: 2}", "inner.zzz: there is no such key. Known: names, rate, size."),
    ],
)
def test_an_unknown_key_at_any_depth_names_its_path_and_the_nearest(text: str, line: str) -> None:
    assert refused(text) == f"here:\n  {line}"


@pytest.mark.parametrize(
    ("text", "path", "found"),
    [
        ("inner: {size: large}", "inner.size", "found 'large'"),
        ("inner: {size: 1.5}", "inner.size", "found 1.5"),
        ("inner: {size: '2'}", "inner.size", "found '2'"),
        ("inner: {size: true}", "inner.size", "found True"),
        ("inner: {rate: '0.1'}", "inner.rate", "found '0.1'"),
        ("inner: {names: a}", "inner.names", "found 'a'"),
        ("inner: {names: [a, no]}", "inner.names.1", "found False"),
        ("inner: null", "inner", "found None"),
        ("inner: 3", "inner", "found 3"),
        ("listed: [3]", "listed.0", "found 3"),
        ("listed: [{title: a, places: {b: 1}}]", "listed.0.places.b", "found 1"),
    ],
)
def test_a_value_of_a_wrong_type_names_its_path_and_what_was_found(text: str, path: str, found: str) -> None:
    message = refused(text)
    assert message.startswith(f"here:\n  {path}: must be a")
    assert message.endswith(f"{found}.")


def test_a_missing_value_names_its_path() -> None:
    assert refused("listed: [{places: {}}]") == "here:\n  listed.0.title: missing; give it a value."


def test_all_that_is_wrong_is_said_at_once() -> None:
    message = refused("inner: {size: x, rat: 1}\nlisted: [{}]")
    assert message.count("\n") == 3
    assert all(path in message for path in ("inner.size", "inner.rat", "listed.0.title"))


@pytest.mark.parametrize("text", ["free: {since: 2020-01-01}", "inner: {size: 2020-01-01}", "free: {x: !!set {a}}"])
def test_what_json_has_not_is_refused_in_words(text: str) -> None:
    assert "not JSON serializable; write dates and the like in quotes" in refused(text)


# --set


def test_a_setting_replaces_one_value_and_leaves_the_rest() -> None:
    tree = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert with_settings(tree, ["a.b=3"]) == {"a": {"b": 3, "c": 2}, "d": [1]}
    assert tree == {"a": {"b": 1, "c": 2}, "d": [1]}


@pytest.mark.parametrize(
    ("setting", "made"),
    [
        ("b.c.d=1", {"a": {"x": 1}, "b": {"c": {"d": 1}}}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ("a.x=null", {"a": {"x": None}}),
        ("a.x=", {"a": {"x": None}}),
        ("a.x=1e-3", {"a": {"x": 1e-3}}),
        ("a={y: {z: 2}}", {"a": {"y": {"z": 2}}}),
        ("a.x=b=c", {"a": {"x": "b=c"}}),
        ("a.x=true", {"a": {"x": True}}),
    ],
)
def test_a_settings_value_is_yaml_and_missing_mappings_are_made(setting: str, made: dict[str, object]) -> None:
    assert with_settings({"a": {"x": 1}}, [setting]) == made


def test_settings_are_applied_in_order_and_null_mappings_are_filled() -> None:
    assert with_settings({"a": None}, ["a.b=1", "a.b=2", "a.c=3"]) == {"a": {"b": 2, "c": 3}}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("a.b", r"path=value, as in training\.learning_rate=1e-3; got 'a\.b'"),
        ("=1", "path=value"),
        ("a.x.y=1", r"a\.x is 1, so a\.x\.y cannot be set inside it"),
        ("l.0=1", r"l is \[1\], so l\.0 cannot be set inside it"),
        ("a.x=[1", r"^the value of a\.x: "),
        ("a={b: 1, b: 2}", r"^the value of a: repeated key b"),
    ],
)
def test_a_setting_that_cannot_be_made_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_settings({"a": {"x": 1}, "l": [1]}, [setting])
