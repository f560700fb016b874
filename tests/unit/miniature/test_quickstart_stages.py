"""The stages' order, and what a working folder says of the calls that ran them."""

import json
from pathlib import Path

import pytest

from blip3o_jax.miniature import parts
from blip3o_jax.miniature import plans
from blip3o_jax.miniature import quickstart

CONFIGS = Path(__file__).parents[3] / "configs"


SYSTEMS = ("blip3o", "nexus_gen")


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_stage_has_a_config_or_is_made_and_has_a_place(system):
  plan = plans.read(CONFIGS, system)
  placed = set(plan.stages(*plan.phases))
  assert set(plan.configs) <= placed
  assert placed | set(plan.alone) == set(plan.configs) | set(plan.made)
  assert set(plan.alone) <= set(plan.made)
  assert not set(plan.alone) & placed
  assert all((CONFIGS / f"{name}.py").is_file() for name in plan.configs.values())
  for kind in plan.phases:
    names = plan.stages(kind)
    assert len(names) == len(set(names))
    assert names[-1] == "report"
  assert plan.system == system


def test_a_system_without_a_plan_is_refused():
  with pytest.raises(
    ValueError, match="'other' has no miniature; expected one of blip3o, nexus_gen"
  ):
    plans.read(CONFIGS, "other")


def test_runs_from_scratch_are_as_long_as_the_plan_says(tmp_path):
  plan = plans.read(CONFIGS)
  parts.choose(tmp_path, "trained")
  told = {stage: plan.arguments(stage, tmp_path) for stage in plan.configs}
  assert told["answers"] == {"first": True, "times": 1.0}
  assert min(words["times"] for words in told.values()) == 1.0


def test_a_plan_is_told_by_its_files_alone(tmp_path):
  """A stage of a system that nobody here knows; `--times` reaches its config."""
  (tmp_path / "shapes_third_plan.py").write_text(PLAN)
  (tmp_path / "third.py").write_text(CONFIG)
  work = tmp_path / "work"
  work.mkdir()
  plan = plans.read(tmp_path, "third")
  parts.choose(work, "trained", plan.system)
  quickstart.one_stage("only", work, tmp_path, plan, times=0.5)
  assert json.loads((work / "done" / "only.json").read_text())["said"] == f"work={work},times=1.5"
  with pytest.raises(ValueError, match="holds a miniature of third; call with --system third"):
    parts.choose(work, "trained")


PLAN = """
from blip3o_jax.miniature.plans import Plan
from blip3o_jax.miniature.plans import Ships

def get_plan():
  made = {"only": lambda call: {"said": call.config("train").words}}
  phases = {"trained": ((("only",),),)}
  ships = Ships("Third", "A third.", (), {}, "drawings.png")
  words, rests = lambda *_: {"times": 3.0}, {"trained": ()}
  return Plan("third", {"train": "third"}, phases, words, made, (), str, rests, ships)
"""
CONFIG = """
from ml_collections import ConfigDict

def get_config(words):
  return ConfigDict({"words": words})
"""


def test_seconds_add_up_over_calls(tmp_path):
  for folder in ("done", "calls"):
    (tmp_path / folder).mkdir()
  assert quickstart.spend(tmp_path, "total", 1.5) == 1.5
  assert quickstart.spend(tmp_path, "total", 2) == 3.5
  (tmp_path / "done" / "export.json").write_text('{"seconds": 2.5, "bytes": 3}')
  (tmp_path / "report.json").write_text('{"scorer": 1}')
  wanted = {"scorer": 1, "seconds": {"export": 2.5, "total": 3.5}}
  assert quickstart.finish(tmp_path, 3.5) == wanted
  assert json.loads((tmp_path / "report.json").read_text()) == wanted


def test_a_stage_that_is_none_or_too_early(tmp_path):
  parts.choose(tmp_path, "trained")
  with pytest.raises(ValueError, match=r"stage 'a/b': expected one of tokenizer, tower"):
    quickstart.one_stage("a/b", tmp_path, CONFIGS)
  with pytest.raises(FileNotFoundError, match=r"autoencoder\.json: absent; .* has not finished"):
    quickstart.one_stage("unet", tmp_path, CONFIGS)
  assert not (tmp_path / "done").exists()


def test_the_summary_names_both_generators():
  rate = {"rate": 0.5}
  drawn = {"overall": rate, "single_object": rate, "unseen_combinations": rate}
  report = {
    "understanding": {"accuracy": 0.9},
    "generation": drawn,
    "reconstruction": {"psnr": 30.0, "scorer_accuracy": rate},
  }
  summary = plans.read(CONFIGS).summary
  assert len(summary(report).splitlines()) == 1
  both = summary(report | {"shipped": {"generation": drawn}})
  assert both.splitlines()[1].startswith("the shipped generator: generation 0.50")
