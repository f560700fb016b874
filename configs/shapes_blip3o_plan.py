"""The stages of the miniature BLIP3-o: `bash launch/quickstart.sh [--from-scratch]`.

What BLIP3-o trains, slots and DiT, is trained from nothing on the frozen parts that ship with the
package, and reported beside the shipped generator:

    shipped     checks the shipped parts, takes their tokenizer
    features    the image tower's features of the generator's training set

With `--from-scratch` every part is trained, for hours: that is how the shipped ones were made.

    tokenizer   byte-level BPE of the embedded set's words
    tower       image tower, contrastive           ┐ one half of the cores
    encode      its features of the training sets  │
    autoencoder                                    │
    unet        the pixel decoder on features      ┘
    answers     language model and vision tower    ┐ the other half, at the same time
    backbone    the same, learning to read prompts ┘

and then

    generator   slots and DiT on features            all cores, backbone frozen
    probe       how weak each category is            one half of the cores
    pretrained  drawings before tuning               the other half
    tuned       instruction tuning on the weakest    all cores
    export      the model in the released layout   ┐ one half of the cores
    score       its answers, drawings, pictures    ┘
    compare     the shipped generator's drawings     the other half; not from scratch
    report      report.html, report.json

`--stage curve`, which no phase runs, scores what the runs had reached on the way: curve.json.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3o_jax.miniature import parts as frozen_parts
from blip3o_jax.miniature import quickstart
from blip3o_jax.miniature.plans import Call
from blip3o_jax.miniature.plans import Kind
from blip3o_jax.miniature.plans import Phase
from blip3o_jax.miniature.plans import Plan
from blip3o_jax.miniature.plans import Ships

CONFIGS = {
  "tower": "shapes_tower_train",
  "answers": "shapes_backbone_train",
  "backbone": "shapes_backbone_train",
  "autoencoder": "shapes_autoencoder_train",
  "unet": "shapes_unet_train",
  "generator": "shapes_generator_pretrain",
  "tuned": "shapes_generator_tune",
}
# Steps of --from-scratch in multiples of those that a config has by itself.
LONG = {"tower": 3.0, "autoencoder": 3.0, "unet": 5.0, "answers": 1.0, "backbone": 3.3}
LONG |= {"generator": 2.5, "tuned": 3.0}
GENERATOR: tuple[Phase, ...] = (
  (("generator",),),
  (("probe",), ("pretrained",)),
  (("tuned",),),
)
PHASES: dict[Kind, tuple[Phase, ...]] = {
  "shipped": (
    (("shipped", "features"),),
    *GENERATOR,
    (("export", "score"), ("compare",)),
    (("report",),),
  ),
  "trained": (
    (("tokenizer",),),
    (("tower", "encode", "autoencoder", "unet"), ("answers", "backbone")),
    *GENERATOR,
    (("export", "score", "report"),),
  ),
}
Found = dict[str, Any]
TITLE = "The trained miniature of blip3o_jax"
TEXT = """A complete BLIP3-o of 64-pixel pictures in the layout of the released checkpoints, in half
precision. It was trained from nothing on scenes of coloured shapes that the package draws,
and knows nothing else."""
SCORES = ("understanding", "generation", "reconstruction", "scorer")
TABLES = {"generation": "Drawings of test prompts", "understanding": "Answers to test questions"}


def get_plan() -> Plan:
  """See `plans.Plan`."""
  made = {
    "shipped": shipped,
    "features": features,
    "encode": encode,
    "probe": probe,
    "unet": unet,
    "tuned": tuned,
    "tokenizer": tokenizer,
    "export": export,
    "score": score,
    "pretrained": pretrained,
    "compare": compare,
    "report": report,
    "curve": curve,
  }
  rests: dict[Kind, tuple[str, ...]] = {"shipped": ("blip3o",), "trained": ()}
  ships = Ships(TITLE, TEXT, SCORES, TABLES, "drawings.png", more)
  return Plan("blip3o", CONFIGS, PHASES, arguments, made, ("curve",), summary, rests, ships)


def arguments(stage: str, work: Path) -> Mapping[str, Any]:
  """Words of a training stage's config."""
  parts = frozen_parts.read(work)
  out: Found = {"first": True} if stage == "answers" else {}
  if parts.kind == "trained":
    out["times"] = LONG[stage]
  elif stage == "generator":
    out["backbone"] = parts.backbone
  return out


def summary(found: Mapping[str, Any]) -> str:
  """The scores in a line, and in another those of the shipped generator where it was drawn."""
  understood, drawn, rebuilt = (found[n] for n in ("understanding", "generation", "reconstruction"))
  lines = [
    f"understanding {understood['accuracy']:.2f}, {quickstart.drawings(drawn)}, reconstruction "
    f"{rebuilt['psnr']:.1f} dB, {rebuilt['scorer_accuracy']['rate']:.2f} right"
  ]
  if "shipped" in found:
    beside = found["shipped"]["generation"]
    lines.append(f"the shipped generator: {quickstart.drawings(beside)}")
  return "\n".join(lines)


def more(scores: Mapping[str, Any]) -> list[str]:
  """Sections of the page of the miniature that ships."""

  def rate(found: Mapping[str, float]) -> str:
    return (
      f"{found['rate']:.2f} ({found['low']:.2f} to {found['high']:.2f}, {found['count']} in all)"
    )

  drawn, read, rebuilt = (scores[x] for x in ("generation", "understanding", "reconstruction"))
  return [
    f"Before instruction tuning {rate(drawn['pretrained']['overall'])} of drawings were right. "
    f"Answers\nwere right in {read['accuracy']:.3f} before the generator's training and in "
    f"{read['accuracy_after_generation_training']:.3f} after it.",
    f"## Reconstruction\n\n{rebuilt['psnr']:.1f} dB; the same objects found in "
    f"{rate(rebuilt['scorer_accuracy'])}.",
  ]


# Stages; what imports jax is imported where one runs. -------------------------------------------


def shipped(call: Call) -> Found:
  """Checks the shipped parts and takes their tokenizer."""
  from blip3o_jax.miniature import stages

  return stages.take_shipped(call.work)


def features(call: Call) -> Found:
  """The image tower's features of the generator's training set."""
  from blip3o_jax.miniature import encoding

  encoding.cache_features(call.work, call.config("generator").data)
  return {}


def encode(call: Call) -> Found:
  """The whitening of the image tower's features, and those of all training sets."""
  from blip3o_jax.miniature import encoding

  data = [call.config(stage).data for stage in ("unet", "generator")]
  return encoding.encode(call.work, data, call.amounts.whiten)


def probe(call: Call) -> Found:
  """The weakest categories, and the features of the scenes that tuning takes of them."""
  from blip3o_jax.miniature import encoding
  from blip3o_jax.miniature import stages

  found = stages.probe(call.work, call.amounts)
  weakest = "+".join(found["weakest"])
  encoding.cache_features(call.work, call.config("tuned", categories=weakest).data)
  return found


def unet(call: Call) -> Found:
  """The pixel decoder, with the scale of the autoencoder's latents."""
  from blip3o_jax.miniature import stages

  scale = quickstart.read_done(call.work, "autoencoder")["scale"]
  return stages.train(call.config("unet", scale=scale), call.work, "unet")


def tuned(call: Call) -> Found:
  """Instruction tuning on the weakest categories."""
  from blip3o_jax.miniature import stages

  weakest = "+".join(quickstart.read_done(call.work, "probe")["weakest"])
  return stages.train(call.config("tuned", categories=weakest), call.work, "tuned")


def tokenizer(call: Call) -> Found:
  """The tokenizer of the set's words."""
  from blip3o_jax.miniature import stages

  return stages.train_tokenizer(call.work, call.amounts)


def export(call: Call) -> Found:
  """The model in the released layout."""
  from blip3o_jax.miniature import stages

  return stages.export_model(call.work)


def score(call: Call) -> Found:
  """The model's answers, drawings and reconstructions."""
  from blip3o_jax.miniature import report

  return report.score(call.work, call.amounts)


def pretrained(call: Call) -> Found:
  """Drawings before tuning, and the scorer's own errors."""
  from blip3o_jax.miniature import report

  return report.draw_pretrained(call.work, call.amounts)


def compare(call: Call) -> Found:
  """The shipped generator's drawings."""
  from blip3o_jax.miniature import report

  return report.compare(call.work, call.amounts)


def report(call: Call) -> Found:
  """report.html and report.json."""
  from blip3o_jax.miniature import report as last

  return last.write(call.work)


def curve(call: Call) -> Found:
  """curve.json."""
  from blip3o_jax.miniature import curve as scored

  return scored.write(call.work, call.amounts)
