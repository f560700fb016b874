"""`tools/plan.py` plans the step that the loop compiles; here for the devices of this machine."""

import json
from pathlib import Path

from commands import command
import pytest
import toy

from blip3o_jax.systems import SYSTEMS
from blip3o_jax.train.run import Train
from blip3o_jax.train.run import parse
from blip3o_jax.train.setup import prepare

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "shapes_objective_smoke.py"


def test_help(capsys):
  with pytest.raises(SystemExit) as status:
    command("plan")("--help")
  assert status.value.code == 0
  assert "--topology=v5e:4x4" in capsys.readouterr().out


def test_a_plan_for_this_machine(monkeypatch, tmp_path, capsys):
  """Of a system that is only here: the plan asks SYSTEMS, and knows none by name."""
  monkeypatch.setitem(SYSTEMS, "toy", toy.System())
  file = tmp_path / "toy_config.py"
  file.write_text(
    "import toy\n"
    "from blip3o_jax.train.run import Train\n"
    "def get_config(arg):\n"
    "  return toy.values(toy.Config(), Train(batch=8, accumulate=2), (3, 5))\n"
  )
  plan = ["--topology=here", "--json", "--config.batch=16"]
  assert command("plan")(f"--config={file}", *plan) == 0
  *_, line = capsys.readouterr().out.splitlines()
  facts = json.loads(line)
  assert (facts["batch"], facts["bucket"], facts["chips"]) == (16, 5, 1)
  setup = prepare(parse(toy.values(toy.Config(), Train(batch=16)), SYSTEMS), toy.System())
  flops = setup.flops(setup.batch_spec(5))
  assert facts["model_tflop_per_chip"] == pytest.approx(flops / 1e12)
  assert facts["argument_bytes"] > 0


def test_errors_are_one_line(capsys):
  for args, message in (
    (["--config=absent.py"], "blip3o plan: --config absent.py: no such file"),
    ([f"--config={SMOKE}", "--config.bach=2"], "config.bach: no such field, did you mean 'batch'?"),
    ([f"--config={SMOKE}", "--topology=v99:1"], "--topology v99:1"),
  ):
    assert command("plan")(*args) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert message in line
