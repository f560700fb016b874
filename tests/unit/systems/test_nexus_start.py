"""What a miniature starts from: a deeper language model, whose new layers change nothing; decoders
that take vectors as if they were white."""

from pathlib import Path
import re

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from blip3o_jax import config
from blip3o_jax.convert import licences
from blip3o_jax.data import shapes
from blip3o_jax.miniature import parts
from blip3o_jax.miniature import plans
from blip3o_jax.systems.nexus_gen import model
from blip3o_jax.systems.nexus_gen import start
from blip3o_jax.systems.nexus_gen import verbs

CONFIGS = Path(__file__).parents[3] / "configs"

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


def test_a_decoder_takes_vectors_as_if_they_were_white():
  rng = np.random.default_rng(0)
  mixed = rng.normal(size=(6, 6)) * [30, 9, 5, 3, 2, 1.5]
  vectors = (rng.normal(size=(4000, 6)) @ mixed.T + 100).astype(np.float32)
  first = start._white(vectors, np.eye(6, dtype=np.float32))
  found = vectors @ first["kernel"] + first["bias"]
  np.testing.assert_allclose(found.mean(0), 0, atol=0.01)
  variances = np.linalg.eigvalsh(np.cov(vectors.T))
  left = np.linalg.eigvalsh(np.cov(found.T))
  np.testing.assert_allclose(left, variances / (variances + start.LEAST * variances[-1]), rtol=0.01)
  turned = rng.normal(size=(6, 4)).astype(np.float32)
  other = start._white(vectors, turned)
  np.testing.assert_allclose(
    vectors @ other["kernel"] + other["bias"], found @ turned, rtol=1e-3, atol=1e-3
  )


@pytest.mark.slow
def test_the_miniature_starts_with_decoders_that_are_fitted_and_stay_so(tmp_path):
  plan = plans.read(CONFIGS, "nexus_gen")
  parts.choose(tmp_path, "trained", plan.system, plan.rests["trained"])
  plan.made["start"](plans.Call(tmp_path, plans.REHEARSED, config.load))
  home = tmp_path / "start"
  assert licences.declared(home) == {"card": "apache-2.0"}  # what the source says goes along
  loaded = verbs.load(home)
  assert set(loaded.cfg.parts) == set(model.PARTS)
  pictures = shapes.render_many([shapes.scene(1, i, "generator") for i in range(64)])
  seen = loaded.seen(pictures)
  merger = nnx.merge(loaded.network.graphdef, loaded.network.params).editor.merger
  given = {
    "generation_decoder": ("adapter.0", seen),
    "edit_decoder": (
      "embedding_merger.projector.1",
      np.asarray(merger.mixed([jnp.asarray(seen), jnp.asarray(seen[::-1])])),
    ),
  }
  for name, (first, vectors) in given.items():
    stored, vectors = load_file(home / f"{name}.safetensors"), vectors.reshape(-1, seen.shape[-1])
    rough, white = (
      vectors @ stored[f"{first}.weight"].T + bias for bias in (0, stored[f"{first}.bias"])
    )
    # Other pictures than those of the fit: what is the same of all vectors is next to nothing now.
    assert np.square(rough.mean(0)).sum() > 100 * np.square(white.mean(0)).sum(), name
    assert np.square(white.mean(0)).sum() < 0.1 * white.var(0).sum(), name
  # As the release began: with the first layer of the language model.
  backbone, editor = (load_file(home / f"{name}.safetensors") for name in ("model", "edit_decoder"))
  layer = [name for name in backbone if name.startswith("model.layers.0.")]
  assert len(layer) == 12
  for name in layer:
    same = editor[name.replace("model.", "embedding_merger.", 1)]
    np.testing.assert_array_equal(same, backbone[name])
  for decoder, fitted in (("generation", "adapter"), ("editing", "merger")):
    cfg = config.load(
      f"{CONFIGS}/shapes_nexus_gen_decoder_train.py:live,decoder={decoder},work={tmp_path}"
    )
    (pattern,) = cfg.trainable
    part = {"generation": "generator", "editing": "editor"}[decoder]
    assert not re.fullmatch(pattern, f"{part}/{fitted}/linear_in/kernel")
    assert re.fullmatch(pattern, f"{part}/{fitted}/linear_out/kernel")
    assert re.fullmatch(pattern, f"{part}/dit/double/attn/q/kernel")
