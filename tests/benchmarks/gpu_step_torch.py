"""PyTorch's side of gpu_step.py, eager or compiled.

The DiT is the oracle's (blip3o_jax/verify/torch) with what one would write for speed: SDPA,
rotations in real numbers, the condition's keys and values once a sample. Training casts the float32
masters once a step, as FSDP's mixed precision does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_step import GUIDANCE
from gpu_step import LEARNING_RATE
from gpu_step import PROBES
from gpu_step import STEPS
from gpu_step import UPDATES
from gpu_step import inputs
import numpy as np
from safetensors.torch import load_file
import torch
from torch.nn import functional as F
import transformers
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from blip3o_jax.diffusion import flow
from blip3o_jax.verify.torch import next_dit as oracle

ROTATION = oracle.rotation  # of whose table the module gets one function


class Attention(oracle.Attention):
  """The oracle's under SDPA; keys and values that were kept are not made again."""

  kept: Any = None

  def keys_values(self, context: torch.Tensor, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    k = self.norm_k(self.to_k(context)).unflatten(-1, (-1, head)).transpose(1, 2)
    return k, self.to_v(context).unflatten(-1, (-1, head)).transpose(1, 2)

  def forward(self, x: Any, context: Any, turn: Any, turn_keys: bool, heads: int) -> torch.Tensor:
    head = x.shape[-1] // heads
    q = self.norm_q(self.to_q(x)).unflatten(-1, (-1, head)).transpose(1, 2)
    k, v = self.keys_values(context, head) if self.kept is None else self.kept
    q, k = rotate(q, turn), rotate(k, turn) if turn_keys else k
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[1] != heads)


class TimeCaptionEmbed(oracle.TimeCaptionEmbed):
  """The oracle's, with its frequencies on the device."""

  def __init__(self, dim: int, width: int):
    super().__init__(dim, width)
    self.omega: Any = None

  def forward(self, timesteps: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    angles = timesteps[:, None] * self.omega
    waves = torch.cat([angles.cos(), angles.sin()], -1).to(c.dtype)
    time = self.timestep_embedder
    tau = time.linear_2(F.silu(time.linear_1(waves)))
    return tau + self.caption_embedder(c.float().mean(1).to(c.dtype))


def rotate(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
  """(B, heads, P, head): neighbouring channels turned by cosines and sines (P, head / 2)."""
  a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
  cos, sin = turn
  return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def last(x: torch.Tensor) -> np.ndarray:
  """(B, C, h, w) -> float32 with channels last."""
  return x.detach().float().movedim(1, -1).cpu().numpy()


class Side:
  """The three cases in PyTorch."""

  def __init__(self, size: dict[str, Any], work: Path, dtype: str, *, compiled: bool):
    self.place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self.size, self.work, self.dtype, self.compiled = size, work, getattr(torch, dtype), compiled
    self.inputs = {k: torch.from_numpy(v).to(self.place) for k, v in inputs(size).items()}

  def device(self) -> str:
    return torch.cuda.get_device_name() if self.place.type == "cuda" else "cpu"

  def versions(self) -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}

  def outputs(self, case: str) -> dict[str, np.ndarray]:
    """What is compared: output, losses of the updates, gradients."""
    if case == "sampler":
      return {"output": last(self._sampler()())}
    step, output, gradients = self._dit() if case == "dit" else self._backbone()
    out = {f"gradient {name}": g.float().cpu().numpy() for name, g in gradients().items()}
    out["output"] = output()
    return out | {"losses": np.asarray([float(step()) for _ in range(UPDATES)])}

  def prepared(self, case: str) -> Callable[[], Any]:
    """A call of the case that returns when the device is done."""
    call = self._sampler() if case == "sampler" else getattr(self, f"_{case}")()[0]

    def done() -> None:
      call()
      if self.place.type == "cuda":
        torch.cuda.synchronize()

    return done

  def _maybe_compiled(self, function: Any) -> Any:
    return torch.compile(function) if self.compiled else function

  def _first(self, name: str) -> torch.Tensor:
    """An input with its channels first."""
    return self.inputs[name].movedim(-1, 1).contiguous()

  def _load_dit(self) -> Any:
    state = load_file(self.work / "dit.safetensors", device=str(self.place))
    oracle.Attention, oracle.TimeCaptionEmbed = Attention, TimeCaptionEmbed  # type: ignore[misc]
    dit = oracle.build(state, {})
    turn = ROTATION(self.size["dit"]["grid"], dit.head).to(self.place)
    table = (turn.real.contiguous(), turn.imag.contiguous())
    oracle.rotation = lambda side, head: table  # type: ignore[assignment,return-value]
    half = oracle.SINUSOID // 2
    omega = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    dit.time_caption_embed.omega = omega.float().to(self.place)
    return dit

  def _training(self, loss: Any, masters: dict[str, torch.Tensor]) -> Any:
    """(a call that updates and gives the loss, a call that gives the gradients)."""
    for master in masters.values():
      master.requires_grad_()
    fused = self.place.type == "cuda"
    adamw = torch.optim.AdamW(masters.values(), lr=LEARNING_RATE, weight_decay=0, fused=fused)
    forward = self._maybe_compiled(loss)

    def gradients() -> dict[str, torch.Tensor]:
      adamw.zero_grad()
      forward(masters).backward()
      found = {name: m.grad.clone() for name, m in masters.items() if m.grad is not None}
      adamw.zero_grad()
      return found

    def step() -> torch.Tensor:
      value = forward(masters)
      value.backward()
      adamw.step()
      adamw.zero_grad()
      return value.detach()

    return step, gradients

  def _dit(self) -> Any:
    dit, dtype = self._load_dit(), self.dtype
    masters = {name: p.detach().float().clone() for name, p in dit.named_parameters()}
    x, target, t = self._first("x"), self._first("target"), self.inputs["t"]
    z = self.inputs["z"].to(dtype)

    def velocity(masters: dict[str, torch.Tensor]) -> torch.Tensor:
      cast = {name: m.to(dtype) for name, m in masters.items()}
      return torch.func.functional_call(dit, cast, (x.to(dtype), t, z)).float()

    def loss(masters: dict[str, torch.Tensor]) -> torch.Tensor:
      return (velocity(masters) - target).square().mean()

    step, graded = self._training(loss, masters)

    def output() -> np.ndarray:
      with torch.no_grad():
        return last(self._maybe_compiled(velocity)(masters))

    return step, output, lambda: {n: g for n, g in graded().items() if n in PROBES}

  def _backbone(self) -> Any:
    size, sections = self.size["backbone"], list(self.size["sections"])
    cfg = transformers.Qwen2_5_VLConfig(
      text_config=dict(
        vocab_size=8,
        hidden_size=size["dim"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv_heads"],
        intermediate_size=size["mlp_dim"],
        rms_norm_eps=1e-6,
        rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=sections),
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
      )
    ).text_config
    cfg._attn_implementation = "sdpa"
    state = load_file(self.work / "backbone.safetensors", device=str(self.place))
    model = qwen.Qwen2_5_VLTextModel(cfg).to(self.place, self.dtype)
    model.load_state_dict(state)
    model.eval().requires_grad_(False)
    prompt, weights = self.inputs["prompt"].to(self.dtype), self.inputs["weights"]
    run = self._maybe_compiled(model)

    def hidden(masters: dict[str, torch.Tensor]) -> torch.Tensor:
      with torch.no_grad():
        cache = run(inputs_embeds=prompt, use_cache=True).past_key_values
      rows = masters["queries"].to(self.dtype).expand(len(prompt), -1, -1)
      read = run(inputs_embeds=rows, past_key_values=cache, use_cache=True)
      return read.last_hidden_state.float()

    masters = {"queries": self.inputs["queries"].clone()}
    compiled, self.compiled = self.compiled, False  # the model is, what is around it need not be
    step, graded = self._training(lambda m: (hidden(m) * weights).mean(), masters)
    self.compiled = compiled

    def output() -> np.ndarray:
      with torch.no_grad():
        return hidden(masters).cpu().numpy()

    return step, output, graded

  def _sampler(self) -> Callable[[], torch.Tensor]:
    dit = self._load_dit().to(self.dtype)
    noise, given = self._first("noise"), self.inputs["condition"].to(self.dtype)
    z = torch.cat([torch.zeros_like(given), given])
    sigmas, timesteps = flow.schedule(STEPS)
    deltas = torch.from_numpy(np.diff(sigmas)).to(self.place)
    times = torch.from_numpy(timesteps).to(self.place)
    run, caption = self._maybe_compiled(dit), dit.caption_projection

    @torch.no_grad()
    def sample() -> torch.Tensor:
      c = caption.linear_2(F.gelu(caption.linear_1(z), approximate="tanh"))
      for block in dit.layers:
        block.attn2.kept = block.attn2.keys_values(block.norm1_context(c), dit.head)
      x = noise
      for i in range(STEPS):
        twice = torch.cat([x, x]).to(self.dtype)
        without, guided = run(twice, times[i].expand(len(twice)), z).float().chunk(2)
        x = x + deltas[i] * (without + GUIDANCE * (guided - without))
      return x

    return sample
