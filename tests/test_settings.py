"""YAML mappings into typed settings, and what is said about wrong ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from recbole_tpad.errors import InputError
from recbole_tpad.settings import at_least, from_mapping


@dataclass(frozen=True)
class Inner:
    steps: int
    rate: float = 1e-3


@dataclass(frozen=True)
class Outer:
    inner: Inner
    name: str = "x"
    flag: bool = False
    orders: tuple[int, ...] = (1,)
    revision: str | None = None
    limit: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Inner, ...] = ()


def read(text: str) -> Outer:
    return from_mapping(Outer, yaml.safe_load(text), "file.yaml")


def test_everything_at_once() -> None:
    found = read(
        """
        inner: {steps: 3, rate: 1e-4}
        name: y
        flag: true
        orders: [2, 3]
        revision: abc
        limit: 5
        extra: {a: [1, {b: 2}]}
        parts: [{steps: 1}, {steps: 2, rate: 1}]
        """
    )
    assert found == Outer(
        Inner(3, 1e-4), "y", True, (2, 3), "abc", 5, {"a": [1, {"b": 2}]}, (Inner(1), Inner(2, 1.0))
    )
    assert isinstance(found.inner.rate, float)
    assert isinstance(found.parts[1].rate, float)


def test_defaults_and_null() -> None:
    assert read("inner: {steps: 1}") == Outer(Inner(1))
    assert read("{inner: {steps: 1}, revision: null, limit: ~}") == Outer(Inner(1))


def test_scientific_notation_without_a_point() -> None:
    assert yaml.safe_load("1e-4") == "1e-4"  # YAML 1.1, and why strings must do
    assert read("inner: {steps: 1, rate: 1e-4}").inner.rate == 1e-4
    assert read("inner: {steps: 1, rate: 3}").inner.rate == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{inner: {steps: 1}, nam: y}", r"^file\.yaml: unknown key 'nam'\. Did you mean 'name'\?"),
        ("{inner: {steps: 1}, 7: y}", r"unknown key '7'\. Known: inner, name"),
        ("inner: {stps: 1}", r"^file\.yaml: inner: unknown key 'stps'\. Did you mean 'steps'"),
        ("name: y", r"^file\.yaml: the key 'inner' is missing"),
        ("inner: {rate: 1.0}", r"^file\.yaml: inner: the key 'steps' is missing"),
        ("inner: 3", r"inner must be 'key: value' lines, not 3"),
        ("inner:", r"inner must be 'key: value' lines, not None"),
        ("inner: {steps: 1.5}", r"inner: steps must be of type int, not 1\.5"),
        ("inner: {steps: '3'}", r"inner: steps must be of type int, not '3'"),
        ("inner: {steps: true}", r"inner: steps must be of type int, not True"),
        ("inner: {steps: 1, rate: fast}", r"inner: rate must be of type float, not 'fast'"),
        ("inner: {steps: 1, rate: false}", r"inner: rate must be of type float, not False"),
        ("inner: {steps: 1, rate: [1]}", r"inner: rate must be of type float"),
        (f"inner: {{steps: 1, rate: {10**400}}}", r"inner: rate must be of type float"),
        ("{inner: {steps: 1}, name: 3}", r"name must be of type str, not 3"),
        ("{inner: {steps: 1}, name: null}", r"name must be of type str, not None"),
        ("{inner: {steps: 1}, flag: 1}", r"flag must be of type bool, not 1"),
        ("{inner: {steps: 1}, flag: 'yes'}", r"flag must be of type bool, not 'yes'"),
        ("{inner: {steps: 1}, orders: 3}", r"orders must be a list, not 3"),
        ("{inner: {steps: 1}, orders: '12'}", r"orders must be a list, not '12'"),
        ("{inner: {steps: 1}, orders: [1, x]}", r"orders must be of type int, not 'x'"),
        ("{inner: {steps: 1}, extra: [1]}", r"extra must be 'key: value' lines"),
        ("{inner: {steps: 1}, limit: many}", r"limit must be of type int, not 'many'"),
        ("{inner: {steps: 1}, parts: [{stes: 1}]}", r"parts: unknown key 'stes'"),
    ],
)
def test_wrong_settings(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(text)


def test_the_mapping_is_not_kept() -> None:
    values: dict[str, Any] = {"inner": {"steps": 1}, "extra": {"a": 1}}
    found = from_mapping(Outer, values, "x")
    values["extra"]["a"] = 2
    assert found.extra == {"a": 1}


@pytest.mark.parametrize("value", [0.5, -1, float("nan")])
def test_limits(value: float) -> None:
    at_least("part", 1, size=1, other=3.5)
    with pytest.raises(InputError, match=r"part: size must be at least 1, not"):
        at_least("part", 1, size=value)
