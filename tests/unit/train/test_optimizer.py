"""Schedules, decay masks and the choice of Muon's matrices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blip3o_jax.train import optimizer
from blip3o_jax.train.optimizer import Optimizer

AXES = {
  "blocks/q/kernel": ("layers", "embed", "heads"),
  "blocks/q/bias": ("layers", "heads"),
  "blocks/norm/scale": ("layers", "rest"),
  "embed/embedding": ("vocab", "embed"),
  "head/bias": ("rest",),
  "head/kernel": ("embed", "rest"),
  "stem/kernel": ("rest", "rest", "embed", "mlp"),
}


def _params(seed: int = 0) -> dict:
  r = np.random.default_rng(seed)

  def leaf(*shape: int) -> jax.Array:
    return jnp.asarray(r.normal(size=shape), jnp.float32)

  return {
    "blocks": {
      "norm": {"scale": leaf(3, 4)},
      "q": {"kernel": leaf(3, 4, 6), "bias": leaf(3, 6)},
    },
    "embed": {"embedding": leaf(5, 4)},
    "head": {"kernel": leaf(4, 2), "bias": leaf(2)},
    "stem": {"kernel": leaf(3, 3, 2, 4)},
  }


def test_schedule_is_the_released_formula():
  cfg = Optimizer(lr=1e-4, lr_end=1e-5, warmup_ratio=0.003)
  steps, warm = 1001, math.ceil(0.003 * 1001)
  assert warm == cfg.warmup(steps) == 4
  found = jax.vmap(optimizer.schedule(cfg, steps))(jnp.arange(steps + 1))
  want = [
    1e-4 * n / warm
    if n < warm
    else 1e-4 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (n - warm) / (steps - warm))))
    for n in range(steps + 1)
  ]
  np.testing.assert_allclose(found, want, rtol=2e-5, atol=1e-11)
  assert found[0] == 0
  np.testing.assert_allclose(found[-1], 1e-5, rtol=1e-5)


def test_constant_schedule_and_no_warmup():
  flat = optimizer.schedule(Optimizer(lr=3e-3, schedule="constant", warmup_steps=2), 10)
  np.testing.assert_allclose([flat(i) for i in (0, 1, 2, 9)], [0, 1.5e-3, 3e-3, 3e-3], rtol=1e-6)
  assert float(optimizer.schedule(Optimizer(lr=3e-3), 10)(0)) == pytest.approx(3e-3)


def test_weight_decay_touches_kernels_alone():
  cfg = Optimizer(lr=1.0, schedule="constant", weight_decay=0.1)
  tx, params = optimizer.make(cfg, 10, AXES), _params()
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  want = jax.tree.map(jnp.zeros_like, params)
  want["blocks"]["q"]["kernel"] = -0.1 * params["blocks"]["q"]["kernel"]
  want["head"]["kernel"] = -0.1 * params["head"]["kernel"]
  want["stem"]["kernel"] = -0.1 * params["stem"]["kernel"]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, want)


def test_clip_is_a_norm_over_all_trained_leaves():
  params, grads = _params(), _params(1)
  sgd_like = Optimizer(lr=1.0, schedule="constant", b1=0.0, b2=0.0, eps=1e3, clip=0.5)
  tx = optimizer.make(sgd_like, 10, AXES)
  updates, _ = tx.update(grads, tx.init(params), params)
  # With so large an eps AdamW is a plain step of 1e-3.
  assert float(optax.tree.norm(updates)) == pytest.approx(0.5e-3, rel=1e-3)


def test_muon_gets_stacked_kernels_layer_by_layer():
  cfg = Optimizer(name="muon", lr=0.02, schedule="constant", clip=0.0)
  assert optimizer.muon_matrices(cfg, AXES) == ["blocks/q/kernel"]
  params, grads = _params(), _params(1)
  tx = optimizer.make(cfg, 10, AXES)
  updates, _ = tx.update(grads, tx.init(params), params)
  plain = optax.contrib.muon(0.02, consistent_rms=0.2)
  for layer in range(3):
    p, g = params["blocks"]["q"]["kernel"][layer], grads["blocks"]["q"]["kernel"][layer]
    want, _ = plain.update(g, plain.init(p), p)
    np.testing.assert_allclose(updates["blocks"]["q"]["kernel"][layer], want, rtol=1e-4, atol=1e-6)
  adamw = optimizer.make(Optimizer(lr=0.02, schedule="constant", clip=0.0), 10, AXES)
  other, _ = adamw.update(grads, adamw.init(params), params)
  np.testing.assert_array_equal(updates["head"]["kernel"], other["head"]["kernel"])
  np.testing.assert_array_equal(updates["embed"]["embedding"], other["embed"]["embedding"])


def test_muon_matrices_by_pattern():
  cfg = Optimizer(name="muon", matrices=("head/.*",))
  assert optimizer.muon_matrices(cfg, AXES) == ["head/kernel"]
  with pytest.raises(ValueError, match=r"optimizer\.matrices: 'heads/\.\*' matches no parameter"):
    optimizer.make(Optimizer(name="muon", matrices=("heads/.*",)), 10, AXES)
  with pytest.raises(ValueError, match="no stacked kernel"):
    optimizer.make(Optimizer(name="muon"), 10, {"head/kernel": ("embed", "rest")})


@pytest.mark.parametrize(
  ("fields", "match"),
  [
    (dict(lr=0.0), r"optimizer\.lr 0\.0"),
    (dict(lr=1e-4, lr_end=1e-3), r"optimizer\.lr_end 0\.001.*optimizer\.lr 0\.0001"),
    (dict(warmup_steps=1, warmup_ratio=0.1), r"optimizer\.warmup_steps and optimizer\.warmup_ra"),
    (dict(b1=1.0), r"optimizer\.b1"),
    (dict(clip=-1.0), r"optimizer\.clip"),
    (dict(matrices=("x",)), r"optimizer\.matrices"),
  ],
)
def test_bad_fields_are_named(fields, match):
  with pytest.raises(ValueError, match=match):
    Optimizer(**fields)
