"""ard.config: strict typed sections; each wrong key is named with the nearest right one."""

from dataclasses import FrozenInstanceError, dataclass
from typing import Literal

import pytest

from ard.config import ConfigError, from_dict, load_params


@dataclass(frozen=True)
class Optimiser:
    lr: float
    name: Literal["adamw", "sgd"] = "adamw"


@dataclass(frozen=True)
class Training:
    steps: int
    optimiser: Optimiser
    sizes: tuple[int, ...] = ()
    box: tuple[float, float] = (0.0, 1.0)
    prior: bool = False
    limit: int | None = None
    weights: dict[str, float] | None = None


GOOD = {"steps": 3, "optimiser": {"lr": 1}}


def test_builds_frozen_nested_typed_values():
    made = from_dict(Training, {**GOOD, "sizes": [1, 2], "limit": 4, "weights": {"a": 1}})
    assert made == Training(3, Optimiser(1.0), sizes=(1, 2), limit=4, weights={"a": 1.0})
    assert type(made.optimiser.lr) is float and type(made.weights["a"]) is float
    with pytest.raises(FrozenInstanceError):
        made.steps = 4


@pytest.mark.parametrize("change, message", [
    ({"stesp": 3}, r"params.yaml:phase1: unknown key 'stesp'; did you mean 'steps'\?"),
    ({"zzz": 3}, "unknown key 'zzz'; known: box, limit"),
    ({"steps": "3"}, r"phase1.steps: expected int, found '3' \(str\)"),
    ({"steps": 3.0}, "expected int, found 3.0"),
    ({"steps": True}, "expected int, found True"),
    ({"prior": "false"}, "phase1.prior: expected bool, found 'false'"),
    ({"prior": 0}, "expected bool"),
    ({"optimiser": {"lr": "1"}}, "phase1.optimiser.lr: expected float, found '1'"),
    ({"optimiser": {"lr": True}}, "expected float, found True"),
    ({"optimiser": {"lr": 1.0, "name": "adam"}}, r"expected one of .*did you mean 'adamw'\?"),
    ({"optimiser": {}}, r"phase1.optimiser: missing key 'lr' \(float\)"),
    ({"optimiser": 3}, "phase1.optimiser: expected dict"),
    ({"sizes": [1, "2"]}, r"phase1.sizes\[1\]: expected int"),
    ({"sizes": "12"}, "phase1.sizes: expected tuple"),
    ({"box": [1.0]}, "phase1.box: expected 2 items, found 1"),
    ({"limit": "none"}, r"phase1.limit: expected int \| None, found 'none'"),
    ({"weights": {"a": "b"}}, "phase1.weights: expected"),
])
def test_wrong_values_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Training, {**GOOD, **change}, "params.yaml:phase1")


def test_missing_key():
    with pytest.raises(ConfigError, match=r"missing key 'steps' \(int\)"):
        from_dict(Training, {"optimiser": {"lr": 1.0}})


def test_load_params(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("phase1:\n  lr: 1e-4\n  answer: no\nphase2:\n")
    assert load_params(path, "phase1") == {"lr": 1e-4, "answer": "no"} and load_params(path, "phase2") == {}
    assert set(load_params(path)) == {"phase1", "phase2"}
    with pytest.raises(ConfigError, match=r"no section 'phas1'; did you mean 'phase1'\?"):
        load_params(path, "phas1")


@pytest.mark.parametrize("text, message", [
    ("a: 1\na: 2\n", "not valid YAML.*duplicate"), ("a: [", "not valid YAML"), ("- 1\n", "expected a mapping"),
    ("a: 3\n", "params.yaml:a: expected dict"),
])
def test_broken_files(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_params(tmp_path / "params.yaml", "a")
    with pytest.raises(ConfigError, match="no such file"):
        load_params(tmp_path / "gone.yaml")


@dataclass(frozen=True)
class Odd:
    level: Literal[0, 1] = 0
    rate: float | int = 1.0
    box: tuple[float, float] = (0.0, 1.0)


@pytest.mark.parametrize("value", [True, False, 1.0])
def test_a_literal_is_of_its_type(value):
    with pytest.raises(ConfigError, match="expected one of"):
        from_dict(Odd, {"level": value})


def test_of_several_types_a_value_keeps_its_own():
    assert type(from_dict(Odd, {"rate": 3}).rate) is int and type(from_dict(Odd, {"rate": 3.0}).rate) is float


def test_too_many_items_are_refused():
    with pytest.raises(ConfigError, match="expected 2 items, found 3"):
        from_dict(Odd, {"box": [1.0, 2.0, 3.0]})
