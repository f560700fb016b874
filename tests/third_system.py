"""Quilt, a toy of a third system: slots after a caption become the colours of square patches."""

import json

from flax import nnx
import jax
import jax.numpy as jnp

from blip3o_jax import config
from blip3o_jax import layers
from blip3o_jax.data.text import chat
from blip3o_jax.data.text.tokenizer import Tokenizer
from blip3o_jax.models import decoder_lm
from blip3o_jax.systems.parts import buckets
from blip3o_jax.systems.parts import flops
from blip3o_jax.systems.parts import layout
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts import recorded
from blip3o_jax.systems.parts import slots
from blip3o_jax.systems.parts import targets
from blip3o_jax.systems.parts import watching
from blip3o_jax.weights import table
from blip3o_jax.weights.rows import decoder_lm as rows

SIDE, LENGTH = 4, 64  # patches a side, of a pixel each; tokens of a prompt


class Quilt(nnx.Module):
  def __init__(self, cfg: decoder_lm.Config, rngs: nnx.Rngs):
    self.backbone = decoder_lm.DecoderLM(cfg, rngs=rngs)
    self.slots = slots.Slots(SIDE**2, cfg.dim, rngs=rngs)
    self.dye = layers.linear(cfg.dim, 3, ("embed", "rest"), dtype=cfg.dtype, rngs=rngs)

  @jax.jit
  def colours(self, tokens, segments):
    x, at = self.backbone.embed(tokens), decoder_lm.plain_positions(segments)
    own = self.slots(len(x), x.dtype)  # each is read one place before its own
    z = slots.read(self.backbone, x, at, segments, own, -1, prompt_gradient="full")
    return jnp.tanh(self.dye(z).astype(jnp.float32)).reshape(len(x), SIDE, SIDE, 3)

  def prepare(self, batch):
    return {**batch, "images": batch["images"] / 127.5 - 1}  # pictures come as uint8

  def weights(self, batch):
    return {"quilts": jnp.float32(len(batch["images"]))}

  def loss(self, batch, key, weights):
    error = self.colours(batch["tokens"], batch["segments"]) - batch["images"]
    value = jnp.sum(jnp.mean(jnp.square(error), (1, 2, 3))) / weights["quilts"]
    return value, {"colour_error": value}


class Sew:
  def __init__(self, data, words, bucket):
    self.data, self.words, self.bucket, self.counts = data, words, bucket, "quilt"

  def prompt(self, caption, limit):
    ids = self.words.encode(f"Sew a quilt that shows {caption}")
    return [*chat.cut(ids, limit - 1, "caption", limit), self.words.needle]

  def tokens(self, record):
    return len(self.prompt(record.prompt, 1 << 30))

  def __call__(self, record, rng):
    ids = self.prompt(record.prompt, self.bucket)
    return chat.token_row(ids, self.bucket, self.words.pad) | targets.target(record, self.data)


class Model:
  words = ()

  def __init__(self, quilt, words):
    self.quilt, self.sew = quilt, Sew(None, words, LENGTH)

  def takes(self, verb, **given):
    return {}

  def generate(self, captions, seeds, *, watch=None, **options):
    if options:
      raise ValueError(f"a quilt is sewn without {', '.join(options)}")
    ids = [self.sew.prompt(caption, LENGTH) for caption in captions]
    padded = chat.pad_left(ids, LENGTH, self.sew.words.pad)
    made = self.quilt.colours(*(buckets.repeat_last(x, buckets.power(len(x))) for x in padded))
    shown = jax.device_get(jnp.rint((made[: len(ids)] + 1) * 127.5).astype(jnp.uint8))
    return watching.once(shown, watch, "pixels")


class System:
  Config, VERBS, LOOKS_FOR, encoder = decoder_lm.Config, ("generate",), "model_type quilt", None
  SPECIAL = {"pad": "<bare>", "im_end": "<sewn>", "needle": "<needle>"}  # noqa: RUF012
  COMPONENTS = {"backbone": "reader", "slots": "cloth", "dye": "cloth"}  # noqa: RUF012

  def build(self, cfg, rngs):
    return Quilt(cfg, rngs)

  def check(self, cfg, trained):
    """Refuses nothing."""

  def batch_spec(self, cfg, batch, bucket):
    ids, sewn = (batch, bucket), (batch, SIDE, SIDE, 3)
    shapes = {"tokens": (ids, "i4"), "segments": (ids, "i4"), "images": (sewn, "u1")}
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}

  def flops(self, cfg, spec):
    return len(spec["tokens"]) * flops.read_slots(cfg, spec["tokens"].shape[1], SIDE**2, 2, True)

  def transforms(self, cfg, data, tokenizer):
    data.check_task("sew")
    return {bucket: Sew(data, tokenizer, bucket) for bucket in data.buckets}

  def sampler(self, cfg, samples, tokenizer):
    words = Tokenizer.load(tokenizer, self.SPECIAL)
    return lambda module, step: Model(module, words).generate(samples.prompts, ())

  def recognises(self, files):
    return files.json("config.json").get("model_type") == "quilt"

  def parts(self, files):
    if not self.recognises(files):
      return layout.Layout(None, ())
    cfg = config.build(self.Config, files.json("config.json")["cloth"], f"{files.directory}: cloth")
    shapes = layout.shapes(lambda rngs: Quilt(cfg, rngs))
    return layout.Layout(cfg, (layout.Part("all", "", ("quilt",), (*self.COMPONENTS,), shapes),))

  def rows_of(self, kind, names, home):
    own = [table.row("needles", "slots/embedding"), *table.linear("dye", "dye")]
    return [*table.prefixed(rows.rows(), "reader.", "backbone/"), *own]

  def stored_as(self, cfg):
    return {}

  def licence(self, component, cfg, parameters):
    return layout.Licence("Needle-1.0", True)

  def differences(self, cfg):
    return []

  def exported(self, cfg, bases, paths, tokenizer):
    if not (base := layout.base_of(bases)) and tokenizer is None:
      raise ValueError("a quilt that started from nothing has no tokenizer; give --tokenizer DIR")
    parts = base.parts if base else (layout.new_part("all", "", "quilt", self.COMPONENTS),)
    return layout.Export(base and base.directory, parts, () if base else ((tokenizer, "."),))

  def write_json(self, cfg, export, folder, tokenizer):
    (folder / "config.json").write_text(json.dumps({"model_type": "quilt", "cloth": vars(cfg)}))

  def stages(self, cfg, ask):
    return []

  def load(self, directory, *, dtype, memory=None):
    cfg = config.build(self.Config, vars(loading.config_of(self, directory)) | {"dtype": dtype})
    words = Tokenizer.load(loading.tokenizer_of(directory), self.SPECIAL)
    return Model(loading.load(self, cfg, directory, dtype=dtype).module(), words)

  def recorded(self, names):
    return {"sew": recorded.Call(("sew.tokens", "sew.segments"), {"sewn": recorded.Bar(1e-5)})}

  def replay(self, directory, dtype, recording):
    quilt = self.load(directory, dtype=dtype).quilt
    return lambda call, given, out: {"sewn": recorded.first(quilt.colours(*given.values()))}
