"""The class that lmms-eval makes and asks. Imports lmms-eval; nothing here imports this module."""

import os
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.instance import TokenCounts
from lmms_eval.api.model import lmms

import blip3o_jax
from blip3o_jax.evaluate import lmms as answering

BATCH = 8


class Blip3o(lmms):
  """A chat model of lmms-eval.

  Args, of --model_args:
    pretrained: a directory or a hub id; without one, the miniature that ships with the package.
    mode: chat, generate or edit. output_dir: where pictures are written. dtype: float32, bfloat16.
    seed: document i is answered with seed + i. options: of the mode's verb, such as steps, guidance
      or max_pixels.
  """

  is_simple = False

  def __init__(
    self,
    pretrained: str = "",
    mode: str = "chat",
    output_dir: str = "blip3o_pictures",
    dtype: str = "float32",
    seed: int = 0,
    batch_size: int | str = BATCH,
    **options: Any,
  ):
    super().__init__()
    options.pop("max_batch_size", None)  # of an automatic size, which there is none of
    if device := options.pop("device", None):
      raise ValueError(
        f"device {device}: JAX computes on what it finds; JAX_PLATFORMS names another"
      )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
      raise ValueError(
        "several processes: the model is for one; it uses all devices that JAX finds"
      )
    if not str(batch_size).isdigit() or int(batch_size) < 1:
      raise ValueError(f"batch_size {batch_size}: expected a number")
    if mode not in answering.MODES:
      raise ValueError(f"mode={mode}: expected one of {', '.join(answering.MODES)}")
    model = blip3o_jax.load(pretrained or None, dtype=dtype, verb=mode)  # type: ignore[arg-type]
    output = Path(output_dir).absolute()
    self.answering = answering.Answering(model, mode, output, int(batch_size), seed, options)

  def generate_until(self, requests: Any) -> list[Any]:
    """Texts with their numbers of tokens; of pictures the JSON of their paths."""
    asked = answering.read(requests, self.task_dict)
    out = []
    for each, reply in zip(asked, self.answering(asked), strict=True):
      counts = TokenCounts(input_tokens=reply.prompt_tokens, output_tokens=reply.tokens)
      told = GenerationResult(reply.text, counts) if reply.tokens is not None else reply.text
      self.cache_hook.add_partial("generate_until", (each.context, each.options), reply.text)
      out.append(told)
    return out

  def loglikelihood(self, requests: Any) -> Any:
    raise NotImplementedError(
      "blip3o: tasks of log-likelihood are not answered, only those of text"
    )

  def generate_until_multi_round(self, requests: Any) -> Any:
    raise NotImplementedError("blip3o: tasks of several rounds are not answered")
