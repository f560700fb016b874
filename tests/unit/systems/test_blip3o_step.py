"""The training step of the system: the exact shortcut, what it computes, and what it holds."""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.miniature import sizes
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import next_dit
from blip3o_jax.systems import blip3o
from blip3o_jax.systems.parts import flops
from blip3o_jax.train import optimizer
from blip3o_jax.train import state as train_state
from blip3o_jax.train import step as train_step

TRAINED = ("slots/.*", "denoiser/.*")
VOCAB = 523  # a size that nothing else has
SHAPES = sizes.blip3o_shapes()
BASE = dataclasses.replace(
  SHAPES,
  backbone=decoder_lm.Config(
    vocab_size=VOCAB,
    dim=128,
    depth=1,
    heads=4,
    kv_heads=2,
    head_dim=32,
    mlp_dim=512,
    mrope_section=(4, 6, 6),
  ),
  denoiser=next_dit.Config(
    in_channels=SHAPES.channels,
    grid=4,
    condition_dim=128,
    dim=64,
    depth=1,
    heads=2,
    kv_heads=2,
  ),
  parts=("denoiser",),
)
ROWS, PROMPT = 4, 80
# Moves all logits of a query alike, so the softmax takes it out: rounding is all there is.
NO_GRADIENT = "denoiser/layers/attn2/norm_k/bias"


def design(prompt_gradient: Any, **changes: Any) -> blip3o.Config:
  return dataclasses.replace(BASE, prompt_gradient=prompt_gradient, **changes)


def deep(cfg: blip3o.Config) -> blip3o.Config:
  return dataclasses.replace(
    cfg,
    backbone=dataclasses.replace(cfg.backbone, depth=3),
    denoiser=dataclasses.replace(cfg.denoiser, depth=2),
  )


def arrays(leaves: train_state.Leaves) -> dict[str, Any]:
  """Random values, also for gates that start at zero: they would hide the condition."""
  rng = np.random.default_rng(0)
  draw = {p: 0.1 * rng.normal(size=v.shape).astype(np.float32) for p, v in leaves.items()}
  return {p: v + p.endswith("scale") for p, v in draw.items()}


def batch(cfg: blip3o.Config) -> dict[str, jax.Array]:
  rng = np.random.default_rng(1)
  segments = np.ones((ROWS, PROMPT), np.int32)
  for row, padding in enumerate((0, 5, 40, 79)):
    segments[row, :padding] = 0
  return {
    "tokens": jnp.asarray(rng.integers(0, VOCAB, (ROWS, PROMPT)), jnp.int32),
    "segments": jnp.asarray(segments),
    "features": jnp.asarray(rng.normal(size=(ROWS, cfg.grid, cfg.grid, cfg.channels)), jnp.float32),
  }


def make(cfg: blip3o.Config) -> tuple[train_state.Partition, Any]:
  """The partition, and (params, frozen, batch, key) -> (loss, gradients)."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  part = train_state.partition(blip3o, cfg, mesh, TRAINED)

  def run(params: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
    return train_step._gradients(part, params, frozen, batch, key, 1)

  return part, run


def arguments(cfg: blip3o.Config, part: train_state.Partition) -> tuple[Any, Any, Any, jax.Array]:
  values = arrays(part.leaves)
  params, frozen = (
    trees.unflatten({p: values[p] for p in leaves}) for leaves in (part.trained, part.frozen)
  )
  return params, frozen, batch(cfg), jax.random.key(2)


def test_the_shortcut_is_exact():
  found = []
  for kind in ("stop", "full"):
    cfg = deep(design(kind))
    part, run = make(cfg)
    value, _, grads = jax.jit(run)(*arguments(cfg, part))
    found.append((float(value), trees.flatten(grads)))
  (short, a), (plain, b) = found
  assert short == pytest.approx(plain, rel=1e-5)
  assert set(a) == set(b)
  for path in sorted(set(a) - {NO_GRADIENT}):
    scale = np.linalg.norm(b[path])
    assert scale > 0, f"{path}: a gradient of zero compares nothing"
    assert np.linalg.norm(a[path] - b[path]) <= 1e-5 * scale, path
  assert np.linalg.norm(a[NO_GRADIENT]) < 1e-5 > np.linalg.norm(b[NO_GRADIENT])


def operations(jaxpr: Any) -> float:
  """Of the matmuls of a program; a multiply-add is two."""
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      inner = np.prod([eqn.invars[0].aval.shape[i] for i in contracted])
      total += 2 * inner * np.prod(eqn.outvars[0].aval.shape)
    turns = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    for inside in jax.extend.core.jaxprs_in_params(eqn.params):
      total += turns * operations(inside)
  return total


def test_the_shortcut_costs_what_theory_says():
  """Matmuls of the program, those of a loop as often as it turns."""
  measured, theory = [], []
  for kind in ("stop", "full"):
    cfg = deep(design(kind))
    part, run = make(cfg)
    measured.append(operations(jax.make_jaxpr(run)(*arguments(cfg, part)).jaxpr))
    theory.append(blip3o.flops(cfg, blip3o.batch_spec(cfg, ROWS, PROMPT)))
  # The formula has all layers of the prompt; the last one stops at its keys and values.
  one = dataclasses.replace(BASE.backbone, depth=1)
  kept = 4 * PROMPT * one.dim * one.kv_heads * one.head_dim
  theory[0] -= ROWS * (flops.decoder(one, PROMPT) - kept)
  assert theory[0] / theory[1] < 0.7, "a configuration in which there is little to save"
  assert measured[0] / measured[1] == pytest.approx(theory[0] / theory[1], rel=0.1)


def equations(jaxpr: Any) -> Iterator[Any]:
  """All equations, at any depth."""
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from equations(inner)


def matmuls_of(jaxpr: Any, size: int) -> list[Any]:
  """Matmuls with a dim of `size` in an operand or the result."""
  dots = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
  assert dots, "the walk saw no matmul"
  return [e for e in dots if any(size in v.aval.shape for v in (*e.invars, *e.outvars))]


def test_no_head_where_no_text_loss_is_used():
  for parts in (("denoiser",), ("denoiser", "head")):
    cfg = design("stop", parts=parts)
    part, run = make(cfg)
    assert not matmuls_of(jax.make_jaxpr(run)(*arguments(cfg, part)).jaxpr, VOCAB), parts
    assert ("backbone/lm_head/kernel" in part.frozen) == ("head" in parts)


def test_a_text_loss_has_a_head():
  cfg = design("full", parts=("head",), loss=blip3o.Loss(image=0, text=1))
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  part = train_state.partition(blip3o, cfg, mesh, ("backbone/.*",))
  rows = batch(cfg)
  rows |= {
    "labels": rows["tokens"],
    "positions": jnp.broadcast_to(jnp.arange(PROMPT), (ROWS, 3, PROMPT)),
  }
  params = trees.unflatten({p: jnp.zeros(v.shape, v.dtype) for p, v in part.trained.items()})
  found = jax.make_jaxpr(lambda *a: train_step._gradients(part, *a, 1))(
    params, {}, rows, jax.random.key(0)
  )
  assert matmuls_of(found.jaxpr, VOCAB)


def test_only_trained_leaves_have_gradients_and_moments():
  cfg = design("stop")
  part, _ = make(cfg)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  tx = optimizer.make(optimizer.Optimizer(), 10, {p: part.axes[p] for p in part.trained})
  abstract = train_state.abstract_state(part, tx, mesh, ema=False)
  trained = sum(math.prod(v.shape) for v in part.trained.values())
  moments = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract.opt) if x.shape)
  assert {p.split("/")[0] for p in part.trained} == {"slots", "denoiser"}
  assert {p.split("/")[0] for p in part.frozen} == {"backbone"}
  assert moments == 2 * trained
  step = train_step.make_step(part, tx, learning_rate=optimizer.schedule(optimizer.Optimizer(), 10))
  frozen = trees.unflatten(part.frozen)
  key = jax.eval_shape(lambda: jax.random.key(0))
  after, _ = jax.eval_shape(step, abstract, frozen, blip3o.batch_spec(cfg, ROWS, PROMPT), key)
  assert set(trees.flatten(after.params)) == set(part.trained)
