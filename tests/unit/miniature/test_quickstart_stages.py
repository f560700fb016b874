"""The stages' order, and what a working folder says of the calls that ran them."""

import json
from pathlib import Path

import pytest

from blip3o_jax.miniature import parts
from blip3o_jax.miniature import quickstart

CONFIGS = Path(__file__).parents[3] / "configs"


def test_every_training_stage_has_a_config_and_a_place():
  placed = set(quickstart.stages(*quickstart.PHASES))
  assert set(quickstart.CONFIGS) <= placed
  assert set(quickstart.LONG) == set(quickstart.CONFIGS)
  assert all((CONFIGS / f"{name}.py").is_file() for name in quickstart.CONFIGS.values())
  for kind in quickstart.PHASES:
    names = quickstart.stages(kind)
    assert len(names) == len(set(names))
    assert names[-1] == "report"


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
  assert len(quickstart.summary(report).splitlines()) == 1
  both = quickstart.summary(report | {"shipped": {"generation": drawn}})
  assert both.splitlines()[1].startswith("the shipped generator: generation 0.50")
