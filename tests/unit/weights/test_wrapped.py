"""What is taken off names, and what is left as it is."""

import pytest

from blip3o_jax.weights import wrapped


@pytest.mark.parametrize(
  ("key", "average"),
  [
    *((key, True) for key in ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict")),
    *((key, True) for key in ("swa", "averaged_model", "ema.shadow", "module_ema", "ema_unet")),
    *((key, False) for key in ("model", "schema", "avg_pool", "emanate", "visual", "state_dict")),
  ],
)
def test_which_keys_are_of_an_average(key, average):
  assert wrapped.is_average(key) is average


@pytest.mark.parametrize(
  ("stored", "names"),
  [
    (["module.a", "module.b"], ["a", "b"]),
    (["module.a", "b"], ["module.a", "b"]),  # not before all
    (["model.norm.w", "model.layers.w"], ["model.norm.w", "model.layers.w"]),  # a name of its own
    (["model.model.norm.w", "model.visual.w"], ["model.norm.w", "visual.w"]),
    (["model.language_model.w", "model.visual.w"], ["model.language_model.w", "model.visual.w"]),
    (["a._orig_mod.b.module.c"], ["a.b.module.c"]),
    (["base_model.model.module._orig_mod.a"], ["a"]),
    (["n_averaged", "module.a"], ["a"]),
    (["decay"], ["decay"]),
    (["avg_pool.w", "a"], ["avg_pool.w", "a"]),
    (["ema.a", "ema.decay", "a"], ["a"]),
    ([], []),
  ],
)
def test_names_proper(stored, names):
  assert list(wrapped.take(stored).names) == names
