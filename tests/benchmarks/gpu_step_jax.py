"""This package's side of gpu_step.py, and the random weights of both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import nnx
from gpu_step import GUIDANCE
from gpu_step import LEARNING_RATE
from gpu_step import PROBES
from gpu_step import STEPS
from gpu_step import UPDATES
from gpu_step import inputs
import jax
import jax.numpy as jnp
from ml_dtypes import bfloat16
import numpy as np
import optax

from blip3o_jax import compiling
from blip3o_jax import trees
from blip3o_jax.diffusion import flow
from blip3o_jax.diffusion import guidance
from blip3o_jax.models import decoder_lm
from blip3o_jax.models import next_dit
from blip3o_jax.systems.parts import slots
from blip3o_jax.train import optimizer
from blip3o_jax.weights import safetensors
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import decoder_lm as lm_rows
from blip3o_jax.weights.rows import next_dit as dit_rows

ROWS = {"dit": dit_rows.rows(), "backbone": lm_rows.rows()}
Arrays = dict[str, Any]


def networks(size: dict[str, Any], dtype: Any) -> dict[str, nnx.Module]:
  """The abstract modules of a size."""
  dit = {name: value for name, value in size["dit"].items() if name != "batch"}
  cfg = next_dit.Config(condition_dim=size["condition"], dtype=dtype, **dit)
  lm = decoder_lm.Config(
    vocab_size=8,  # prompts come as vectors: the table takes no part
    mrope_section=tuple(size["sections"]),
    tie_embeddings=True,
    dtype=dtype,
    **size["backbone"],
  )
  return {
    "dit": nnx.eval_shape(lambda: next_dit.NextDiT(cfg, rngs=nnx.Rngs(0))),
    "backbone": nnx.eval_shape(lambda: decoder_lm.DecoderLM(lm, rngs=nnx.Rngs(0))),
  }


def shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
  flat = trees.flatten(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
  return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def write(size: dict[str, Any], work: Path) -> None:
  """Random weights under the released names, in bfloat16; nothing is neutral."""
  rng = np.random.default_rng(1)
  for name, module in networks(size, "float32").items():
    tensors = {}
    for tensor, target in table.targets(ROWS[name], shapes(module)).items():
      value = rng.standard_normal(target.shape, np.float32)
      if len(target.shape) > 1:
        value *= target.shape[-1] ** -0.5
      elif tensor.endswith("weight"):
        value = 1 + 0.1 * value
      else:
        value *= 0.5 if tensor.endswith("gate") else 0.02
      tensors[tensor] = value.astype(bfloat16)
    safetensors.save(tensors, work / f"{name}.safetensors")


class Side:
  """The three cases in JAX, compiled as the package compiles its step."""

  def __init__(self, size: dict[str, Any], work: Path, dtype: str, *, compiled: bool):
    del compiled  # JAX has one way
    if dtype == "float32":
      jax.config.update("jax_default_matmul_precision", "highest")
    self.size, self.work, self.dtype = size, work, jnp.dtype(dtype)
    self.modules = networks(size, dtype)
    self.inputs = inputs(size)

  def device(self) -> str:
    return jax.devices()[0].device_kind

  def versions(self) -> dict[str, str]:
    return {"jax": jax.__version__}

  def outputs(self, case: str) -> dict[str, np.ndarray]:
    """What is compared: output, losses of the updates, gradients."""
    if case == "sampler":
      return {"output": np.asarray(self._sampler()(), np.float32)}
    step, output, gradients = self._dit() if case == "dit" else self._backbone()
    out = {f"gradient {name}": value for name, value in gradients().items()}
    out["output"] = output()
    return out | {"losses": np.asarray([float(step()) for _ in range(UPDATES)])}

  def prepared(self, case: str) -> Callable[[], Any]:
    """A call of the case that returns when the device is done."""
    call = self._sampler() if case == "sampler" else getattr(self, f"_{case}")()[0]
    return lambda: jax.block_until_ready(call())

  def _load(self, name: str, dtype: Any) -> tuple[Any, Arrays]:
    """The graph of a module, and its parameters through the table."""
    module = self.modules[name]
    tensors = safetensors.Tensors(self.work / f"{name}.safetensors")
    found = shapes(module)
    sources = table.plan(ROWS[name], dict(tensors), found)
    flat = {}
    for path, shape in found.items():
      whole = (slice(None),) * len(shape)
      value = table.read_shard(sources[path], tensors.read, whole, shape)
      flat[path] = jnp.asarray(value, dtype)
    return nnx.graphdef(module), trees.unflatten(flat)

  def _compile(self, function: Any, *args: Any, donate: tuple[int, ...] = ()) -> Any:
    chosen = compiling.options(self.device())
    return jax.jit(function, donate_argnums=donate).lower(*args).compile(compiler_options=chosen)

  def _training(self, loss: Any, params: Arrays, axes: Any, batch: Any) -> Any:
    """(a call that updates and gives the loss, a call that gives the gradients)."""
    cfg = optimizer.Optimizer(lr=LEARNING_RATE, schedule="constant", clip=0)
    tx = optimizer.make(cfg, 1000, axes)

    def graded(params: Arrays, batch: Any) -> Any:
      compute = jax.tree.map(lambda p: p.astype(self.dtype), params)
      value, grads = jax.value_and_grad(loss)(compute, batch)
      return value, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    def step(params: Arrays, state: Any, batch: Any) -> Any:
      value, grads = graded(params, batch)
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state, value

    held = [params, tx.init(params)]
    program: list[Any] = []

    def call() -> Any:
      if not program:
        program.append(self._compile(step, *held, batch, donate=(0, 1)))
      *held[:], value = program[0](*held, batch)
      return value

    return call, lambda: self._compile(graded, held[0], batch)(held[0], batch)[1]

  def _dit(self) -> Any:
    graph, params = self._load("dit", jnp.float32)
    batch = {name: jnp.asarray(self.inputs[name]) for name in ("x", "t", "z", "target")}

    def forward(params: Arrays, batch: Arrays) -> jax.Array:
      dit = nnx.merge(graph, params)
      return dit(batch["x"], batch["t"], dit.prepare(batch["z"].astype(self.dtype)))

    def loss(params: Arrays, batch: Arrays) -> jax.Array:
      return jnp.mean((forward(params, batch) - batch["target"]) ** 2)

    axes = {path: ("rest",) * len(shape) for path, shape in shapes(self.modules["dit"]).items()}
    step, graded = self._training(loss, params, axes, batch)

    def output() -> np.ndarray:
      cast = jax.tree.map(lambda p: p.astype(self.dtype), params)
      return np.asarray(self._compile(forward, cast, batch)(cast, batch))

    def gradients() -> dict[str, np.ndarray]:
      flat = trees.flatten(graded())
      targets = table.targets(ROWS["dit"], {path: g.shape for path, g in flat.items()})
      out = {}
      for name in (n for n in PROBES if n in targets):
        target = targets[name]
        value = flat[target.paths[0]]
        value = value if target.layer is None else value[target.layer]
        out[name] = np.transpose(np.asarray(value), np.argsort(target.perm))
      return out

    return step, output, gradients

  def _backbone(self) -> Any:
    graph, frozen = self._load("backbone", self.dtype)
    batch = {name: jnp.asarray(self.inputs[name]) for name in ("prompt", "weights")}
    batch["frozen"] = frozen
    params = {"queries": jnp.asarray(self.inputs["queries"])}

    def forward(params: Arrays, batch: Arrays) -> jax.Array:
      language = nnx.merge(graph, batch["frozen"])
      prompt = batch["prompt"].astype(self.dtype)
      rows, length = prompt.shape[:2]
      positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
      table = jnp.broadcast_to(params["queries"], (rows, *params["queries"].shape[1:]))
      read = slots.read(language, prompt, positions, jnp.ones_like(positions), table)
      return read.astype(jnp.float32)

    def loss(params: Arrays, batch: Arrays) -> jax.Array:
      return jnp.mean(forward(params, batch) * batch["weights"])

    step, graded = self._training(loss, params, {"queries": ("rest",) * 3}, batch)

    def output() -> np.ndarray:
      cast = {"queries": jnp.asarray(self.inputs["queries"], self.dtype)}
      return np.asarray(self._compile(forward, cast, batch)(cast, batch))

    return step, output, lambda: {"queries": np.asarray(graded()["queries"])}

  def _sampler(self) -> Callable[[], Any]:
    graph, params = self._load("dit", self.dtype)
    noise, z = (jnp.asarray(self.inputs[name]) for name in ("noise", "condition"))
    times = jax.tree.map(jnp.asarray, flow.table(STEPS))

    def sample(params: Arrays, noise: jax.Array, z: jax.Array, times: flow.Table) -> jax.Array:
      dit = nnx.merge(graph, params)
      z = z.astype(self.dtype)
      given, null = dit.prepare(z), dit.prepare(jnp.zeros_like(z[:1]))
      guided = guidance.cfg(dit, given, null, GUIDANCE, next_dit.BATCH_AXES)
      return flow.euler(guided, noise, times)

    program = self._compile(sample, params, noise, z, times)
    return lambda: program(params, noise, z, times)
