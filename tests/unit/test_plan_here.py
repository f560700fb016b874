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
  assert "--topology=v5p:4x4x4" in capsys.readouterr().out


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
  out = tmp_path / "plan.json"
  plan = [
    "--topology=here",
    f"--json={out}",
    "--config.batch=16",
    f"--text={tmp_path / 'step.txt'}",
  ]
  assert command("plan")(f"--config={file}", *plan) == 0
  facts = json.loads(out.read_text())
  assert (facts["batch"], facts["prompt_bucket"], facts["chips"]) == (16, 5, 1)
  assert (facts["topology"], facts["batch_per_chip"]) == ("here", 16)
  setup = prepare(parse(toy.values(toy.Config(), Train(batch=16)), SYSTEMS), toy.System())
  flops = setup.flops(setup.batch_spec(5))
  assert facts["flops_per_sample_analytic"] == pytest.approx(flops / 16)
  assert facts["bytes_per_chip"]["arguments"] > 0
  # A processor is not in the table of chips: its operations are counted, no time is made up.
  assert facts["flops_per_sample"] > 0
  assert facts["step_seconds"] is facts["mfu"] is facts["run_days"] is None
  assert "the chip is not in the table" in capsys.readouterr().out
  assert (tmp_path / "step.txt").read_text().startswith("HloModule")


def test_errors_are_one_line(capsys):
  for args, message in (
    (["--config=absent.py"], "blip3o plan: --config absent.py: no such file"),
    ([f"--config={SMOKE}", "--config.bach=2"], "config.bach: no such field, did you mean 'batch'?"),
    ([f"--config={SMOKE}", "--topology=v99:1"], "--topology v99:1: unknown; known are"),
    ([f"--config={SMOKE}", "--topology=v5p-3"], "no slice has this size; known are v5p-8 (2x2x1)"),
    ([f"--config={SMOKE}", "--topology=here", "--mesh=fdsp=2"], "mesh fdsp=2: expected AXIS=N"),
    ([f"--config={SMOKE}", "--topology=here", "--slices=2"], "there is one slice"),
    (
      [f"--config={SMOKE}", "--topology=here", "--json=absent/x.json"],
      "absent/x.json: no such fol",
    ),
    ([f"--config={SMOKE}", "--topology=here", "--price=much"], "--price much: expected a number"),
  ):
    assert command("plan")(*args) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert message in line


def test_gpus_side_by_side(tmp_path, capsys):
  """Nothing is compiled for them: times are bounds, and said to be."""
  out = tmp_path / "plan.json"
  args = [f"--config={SMOKE}", "--compare", "h100:1", "a100:1", "v5p-3", f"--json={out}"]
  assert command("plan")(*args, "--price=a100=1,h100=2", "--batch-per-chip=8") == 0
  facts, said = json.loads(out.read_text()), capsys.readouterr().out
  assert [each["topology"] for each in facts["compared"]] == ["h100:1", "a100:1"]
  (refused,) = facts["refused"]
  assert refused.startswith("v5p-3: --topology v5p-3: no slice has this size")
  assert "nothing was compiled" in said
  cheap = min(facts["compared"], key=lambda each: each["run_cost"])
  assert facts["topology"] == cheap["topology"]
  (best,) = [line for line in said.splitlines() if line.endswith("<- best: least cost")]
  assert best.startswith(cheap["topology"])
  for each in facts["compared"]:
    terms = {k: v for k, v in each["step_seconds_by_term"].items() if v}
    assert each["step_seconds"] == max(terms.values())
    assert each["flops_per_sample"] is None
    assert each["batch_per_chip"] == each["batch"] == 8
    samples = 60 * 16  # the config's, whatever a step takes of them
    assert each["run_samples"] == samples
    assert each["run_days"] == pytest.approx(each["step_seconds"] * samples / 8 / 86400)
    assert each["run_chip_hours"] == pytest.approx(each["run_days"] * 24)


def test_fewer_layers_and_another_bucket(tmp_path, capsys):
  out = tmp_path / "plan.json"
  facts = {}
  for more in ([], ["--layers=1"], ["--prompt-bucket=32"]):
    assert command("plan")(f"--config={SMOKE}", "--topology=h100:1", f"--json={out}", *more) == 0
    facts["".join(more)] = json.loads(out.read_text())
  whole, short = facts[""], facts["--layers=1"]
  assert (whole["prompt_bucket"], facts["--prompt-bucket=32"]["prompt_bucket"]) == (160, 32)
  assert short["layers"] == 1
  assert short["flops_per_sample_analytic"] < whole["flops_per_sample_analytic"]
  assert "A QUICK LOOK: networks of at most 1 layers" in capsys.readouterr().out
