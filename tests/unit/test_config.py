"""Configs: what is built, and what a person is told who made a mistake."""

import dataclasses
import json
import subprocess
import sys
from typing import Literal

from ml_collections import ConfigDict
import pytest

from blip3o_jax import config


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = 0.1
  kind: Literal["a", "b"] = "a"
  sizes: tuple[int, ...] = (1, 2)
  pair: tuple[int, float] = (1, 2.0)

  def __post_init__(self):
    if self.rate < 0:
      raise ValueError(f"rate {self.rate} is negative")


@dataclasses.dataclass(frozen=True)
class Outer:
  steps: int
  inner: Inner = Inner()
  name: str = "x"
  flag: bool = False


def test_round_trip():
  value = Outer(3, Inner(0.5, "b", (4,), (2, 3.0)), "y", True)
  assert config.build(Outer, config.to_config(value)) == value
  assert config.build(Outer, json.loads(json.dumps(config.to_dict(value)))) == value


def test_every_field_is_a_flag():
  fields = config.to_config(Outer(1))
  assert set(fields) == {"steps", "inner", "name", "flag"}
  assert isinstance(fields.inner, ConfigDict)
  assert set(fields.inner) == {"rate", "kind", "sizes", "pair"}


def test_values_take_the_type_of_the_field():
  built = config.build(Outer, {"steps": 1, "inner": {"rate": 1, "sizes": [3, 4], "pair": [1, 1]}})
  assert isinstance(built.inner.rate, float)
  assert isinstance(built.inner.pair[1], float)
  assert built.inner.sizes == (3, 4)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"stpes": 1}, "config.stpes: no such field, did you mean 'steps'?"),
    ({"steps": 1, "qqqq": 1}, "config.qqqq: no such field; known fields: steps, inner, name, flag"),
    ({}, "config.steps: missing, expected int"),
    ({"steps": 1.0}, "config.steps: expected int, got 1.0"),
    ({"steps": "1"}, "config.steps: expected int, got '1'"),
    ({"steps": True}, "config.steps: expected int, got True"),
    ({"steps": 1, "flag": 1}, "config.flag: expected bool, got 1"),
    ({"steps": 1, "name": 1}, "config.name: expected str, got 1"),
    ({"steps": 1, "inner": 4}, "config.inner: expected a group of fields, got 4"),
    ({"steps": 1, "inner": {"rat": 1.0}}, "config.inner.rat: no such field, did you mean 'rate'?"),
    ({"steps": 1, "inner": {"kind": "c"}}, "config.inner.kind: 'c' is not one of ('a', 'b')"),
    ({"steps": 1, "inner": {"sizes": 3}}, "config.inner.sizes: expected a tuple, got 3"),
    ({"steps": 1, "inner": {"sizes": (1, "2")}}, "config.inner.sizes[1]: expected int, got '2'"),
    ({"steps": 1, "inner": {"pair": (1,)}}, "config.inner.pair: expected 2 values, got 1"),
    ({"steps": 1, "inner": {"rate": True}}, "config.inner.rate: expected float, got True"),
    ({"steps": 1, "inner": {"rate": -1.0}}, "config.inner: rate -1.0 is negative"),
  ],
)
def test_a_mistake_is_named(values, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011 the whole text is compared
    config.build(Outer, values)
  assert str(error.value) == message


def test_union_types_are_refused():
  @dataclasses.dataclass(frozen=True)
  class Bad:
    size: int | None = 1

  with pytest.raises(ValueError, match="union types are not config types"):
    config.build(Bad, {"size": 1})


def test_the_argument_of_a_config_file():
  spec = dict(debug=False, steps=10, rate=0.5, name="x")
  assert config.parse_arg("", **spec).to_dict() == spec
  parsed = config.parse_arg("debug,steps=3,rate=2,name=y", **spec)
  assert parsed.to_dict() == dict(debug=True, steps=3, rate=2.0, name="y")
  assert not config.parse_arg("debug=false", **spec).debug


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("sptes=3", "'sptes': unknown, expected one of debug, steps"),
    ("steps=many", "steps='many': expected int"),
    ("debug=1", "debug='1': expected true or false"),
  ],
)
def test_a_wrong_argument_is_named(arg, message):
  with pytest.raises(ValueError, match=message):
    config.parse_arg(arg, debug=False, steps=10)


FILE = """
from ml_collections import ConfigDict
def get_config(arg):
  return ConfigDict(dict(steps=int(arg or 1), names=("a", "b"), optimizer=dict(lr=1.0)))
"""


def test_a_file_with_overrides(tmp_path):
  file = tmp_path / "one.py"
  file.write_text(FILE)
  assert config.load(str(file)).steps == 1
  found = config.load(f"{file}:7", ["--config.optimizer.lr=0.5", "--config.names=('c',)"])
  assert (found.steps, found.names, found.optimizer.lr) == (7, ("c",), 0.5)
  lines = list(config.lines(found))
  wanted = ["--config.names=('c',)", "--config.optimizer.lr=0.5", "--config.steps=7"]
  assert sorted(lines) == wanted
  assert config.load(str(file), lines) == found


def test_a_config_dict_with_overrides(tmp_path):
  values = ConfigDict(dict(steps=1, optimizer=dict(lr=1.0)))
  found = config.load(values, ["--config.optimizer.lr=2.0"])
  assert (found.optimizer.lr, values.optimizer.lr) == (2.0, 1.0)
  with pytest.raises(ValueError, match=r"config\.optimizer\.rate: no such field"):
    config.load(values, ["--config.optimizer.rate=1"])


def test_configs_need_no_jax():
  code = "import sys, blip3o_jax.config, blip3o_jax.trees; sys.exit('jax' in sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)
