"""Cross-checks of the run's config; every field is a flag."""

import pytest

from blip3o_jax import config
from blip3o_jax.train.run import Train


def test_defaults_survive_the_config_dict():
  assert config.build(Train, config.to_config(Train())) == Train()


@pytest.mark.parametrize(
  ("fields", "match"),
  [
    (dict(steps=0), "config: steps 0"),
    (dict(batch=10, accumulate=4), "batch 10 is not divisible by accumulate x .* = 4 x 1 x 1"),
    (dict(batch=8, mesh=dict(replica=3)), "batch 8 is not .* mesh.replica .* 1 x 3 x 1"),
    (dict(steps=5, optimizer=dict(warmup_steps=6)), "warmup_steps 6 exceeds steps 5"),
    (dict(ema_decay=1.0), "ema_decay 1.0"),
    (dict(trainable=()), "trainable: no pattern"),
    (dict(profile=(3,)), "profile"),
    (dict(checkpoint=dict(keep=0)), r"config\.checkpoint: checkpoint\.keep 0"),
    (dict(log=dict(every=0)), r"config\.log: log\.every 0"),
    (dict(mesh=dict(tensor=0)), r"config\.mesh: mesh\.tensor 0"),
    (dict(frozen_dtype="float16"), "frozen_dtype: 'float16' is not one of"),
    (dict(optimiser=dict()), "did you mean 'optimizer'"),
  ],
)
def test_bad_fields_are_named(fields, match):
  with pytest.raises(ValueError, match=match):
    config.build(Train, fields)
