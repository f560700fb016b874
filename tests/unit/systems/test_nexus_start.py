"""What a miniature starts from: a deeper language model, whose new layers change nothing."""

import numpy as np

from blip3o_jax.systems.nexus_gen import start

READ, WRITES, NORM = "self_attn.q_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight"


def test_layers_are_added_behind_the_last_and_add_nothing():
  rng = np.random.default_rng(0)
  given = {
    f"{tower}.{i}.{name}": rng.normal(size=(2, 3)).astype(np.float32)
    for tower in ("model.layers", "visual.blocks")
    for i in range(2)
    for name in (READ, WRITES, NORM)
  }
  out = start.deepened(given, 2, 2)
  assert {name: out[name] is value for name, value in given.items()} == dict.fromkeys(given, True)
  added = {f"model.layers.{i}.{name}" for i in (2, 3) for name in (READ, WRITES, NORM)}
  assert set(out) - set(given) == added
  for i in (2, 3):
    np.testing.assert_array_equal(out[f"model.layers.{i}.{WRITES}"], 0)
    for name in (READ, NORM):
      np.testing.assert_array_equal(
        out[f"model.layers.{i}.{name}"], given[f"model.layers.1.{name}"]
      )
