"""The stages of the miniature Nexus-Gen: `quickstart.sh --system nexus_gen [--from-scratch]`.

As the release began with a trained Qwen2.5-VL, it begins with the language model, the vision tower
and the autoencoder of the miniature BLIP3-o that ships with the package. What Nexus-Gen trains
first, the language model, ships with the package, too; both decoders are trained on it:

    start       DIR/start: these, the language model two layers deeper, in the released layout
    told        what it predicts of other captions and edits, kept                all cores
    generation  the generation decoder on what was predicted of captions          all cores
    editing     the editing decoder on what was predicted of edits, beside the
                vectors of the picture that is edited                             all cores
    export      DIR/model, the whole model in the released layout
    score       its answers, drawings and edits
    report      report.html, report.json

With `--from-scratch` the language model is trained, behind `start`: that is how the one that ships
was made.

    language    answers, and vectors that are predicted of captions and edits     all cores

`--stage curve`, which no phase runs, scores what the runs had reached on the way: curve.json.
"""

from collections.abc import Mapping
from pathlib import Path
import shutil
from typing import Any

from blip3o_jax.miniature import parts as frozen_parts
from blip3o_jax.miniature import quickstart
from blip3o_jax.miniature import shipped
from blip3o_jax.miniature.plans import Call
from blip3o_jax.miniature.plans import Kind
from blip3o_jax.miniature.plans import Phase
from blip3o_jax.miniature.plans import Plan
from blip3o_jax.miniature.plans import Ships

CONFIGS = {
  "language": "shapes_nexus_gen_language_train",
  "generation": "shapes_nexus_gen_decoder_train",
  "editing": "shapes_nexus_gen_decoder_train",
}
DECODERS = ("told", "generation", "editing", "export", "score", "report")
PHASES: dict[Kind, tuple[Phase, ...]] = {
  "shipped": tuple(((stage,),) for stage in ("start", *DECODERS)),
  "trained": tuple(((stage,),) for stage in ("start", "language", *DECODERS)),
}
TITLE = "Nexus-Gen, the miniature"
TEXT = """A complete Nexus-Gen of 64-pixel pictures in the layout of the released checkpoint, in
half precision: it answers, draws and edits. Its vision tower, its autoencoder and what its
language model began with are those of the miniature BLIP3-o that ships beside it; the rest was
trained on scenes of coloured shapes that the package draws, and it knows nothing else."""
SCORES = ("understanding", "generation", "editing", "editing_bounds")
TABLES = {
  "editing": "Test edits",
  "generation": "Drawings of test prompts",
  "understanding": "Answers to test questions",
}
# A run -> the curve that it belongs to.
RUNS = {
  "language": "understanding",
  "generation": "generation",
  "editing": "editing",
}
BASE = "blip3o"  # whose miniature it begins with
SIDE = 64
FITTED = 256  # pictures that the head and both decoders are fitted on
MORE = 2  # layers: to find what is asked for and to copy the rest are things of their own
Found = dict[str, Any]


def get_plan() -> Plan:
  """See `plans.Plan`."""
  made = {
    "start": start,
    "told": told,
    "export": export,
    "score": score,
    "report": report,
    "curve": curve,
  }
  rests: dict[Kind, tuple[str, ...]] = {"shipped": (BASE, "nexus_gen"), "trained": (BASE,)}
  ships = Ships("The trained miniature Nexus-Gen of blip3o_jax", TEXT, SCORES, TABLES, "edits.png")
  return Plan("nexus_gen", CONFIGS, PHASES, arguments, made, ("curve",), summary, rests, ships)


def arguments(stage: str, work: Path) -> Mapping[str, Any]:
  """Words of a training stage's config: which of the decoders it is, and of what model."""
  if stage not in ("generation", "editing"):
    return {}
  out = {"decoder": stage}
  if frozen_parts.read(work).kind == "shipped":
    out["language"] = f"{shipped.directory('nexus_gen')}#only=backbone+vision_head+slots"
  return out


def summary(found: Mapping[str, Any]) -> str:
  """The scores in two lines."""
  edited = found["editing"]
  kinds = ", ".join(
    f"{name} {rate['rate']:.2f}" for name, rate in edited.items() if name != "overall"
  )
  return (
    f"understanding {found['understanding']['overall']['rate']:.2f}, "
    f"{quickstart.drawings(found['generation'])}\n"
    f"editing {edited['overall']['rate']:.2f} ({kinds})"
  )


# Stages; what imports jax is imported where one runs. -------------------------------------------


def start(call: Call) -> Found:
  """Checks the shipped parts, and writes what training starts from."""
  from blip3o_jax.data import shapes
  from blip3o_jax.systems.nexus_gen import released
  from blip3o_jax.systems.nexus_gen import start as begin

  kind = frozen_parts.read(call.work).kind
  for system in get_plan().rests[kind]:
    shipped.verify(shipped.directory(system))
  settings = released.Settings(
    min_pixels=SIDE**2,
    max_pixels=SIDE**2,
    steps=20,
    scale=1.5,
    size=SIDE,
    penalty=1.0,  # an answer of one word often repeats the question's
    words=shapes.EDIT_WORDS,
    # What is seen of a picture can know then which object the instruction is about.
    pictures="after",
  )
  scenes = [shapes.scene(0, i, "generator") for i in range(FITTED)]
  pictures = shapes.render_many(scenes)
  begin.write(shipped.directory(), call.work / "start", settings, pictures, more=MORE)
  return {}


def told(call: Call) -> Found:
  """What the language model predicts, WORK/told/SET for the sets of both decoders."""
  from blip3o_jax import systems
  from blip3o_jax.train import encoding
  from blip3o_jax.train import run

  system = systems.SYSTEMS["nexus_gen"]
  out: Found = {}
  for stage in ("generation", "editing"):
    data = call.config(stage).data
    for path in map(Path, [each["path"] for each in data.mixture] or [data.path]):
      cfg = call.config(stage, live=True, scenes=path.name)
      asked = encoding.Asked(path, dtype="float16", pixels=True)
      done = encoding.encode(run.parse(cfg, systems.SYSTEMS), system, asked)
      out[path.name] = {"records": done["records"], "shape": done["encoder"]["shape"]}
  return out


def export(call: Call) -> Found:
  """The model in the released layout: what the run of the last decoder holds and started from."""
  from blip3o_jax.convert import exporter
  from blip3o_jax.miniature import stages

  model = call.work / "model"
  shutil.rmtree(model, ignore_errors=True)
  exporter.run(call.work / "editing", model, weights="ema", dtype="float16")
  return stages.made_of(model)


def score(call: Call) -> Found:
  """The model's answers, drawings and edits."""
  from blip3o_jax.miniature import report
  from blip3o_jax.systems.nexus_gen import verbs

  return report.score_edits(call.work, verbs.load(call.work / "model"), call.amounts)


def report(call: Call) -> Found:
  """report.html and report.json."""
  from blip3o_jax.miniature import report as last

  return last.write(call.work, TITLE)


def curve(call: Call) -> Found:
  """curve.json, of questions, prompts and edits that are not the report's."""
  from blip3o_jax.data import shapes
  from blip3o_jax.miniature import curve as scored
  from blip3o_jax.miniature import scores
  from blip3o_jax.miniature import stages

  count, seed = call.amounts.probe, stages.PROBE_SEED
  asked = stages.probe_prompts(count)
  edits = scores.edits_of(count, seed=seed, split="generator")

  def rate(name: str, step: int) -> float:
    model = _model(call.work / name, step)
    if RUNS[name] == "understanding":
      return scores.understanding(model, count, seed=seed)[0]["overall"]["rate"]
    if name == "generation":
      return scores.mean(scores.generation(model, asked, seed=seed)[0], shapes.CATEGORIES)
    return scores.editing(model, edits, seed=seed)[0]["overall"]["rate"]

  return scored.write_points(call.work, RUNS, rate)


def _model(run: Path, step: int) -> Any:
  """The model of a run's checkpoint: decoders by their average, the language model as it was."""
  from blip3o_jax import systems
  from blip3o_jax.data.text.tokenizer import Tokenizer
  from blip3o_jax.systems.nexus_gen import prompts
  from blip3o_jax.systems.nexus_gen import released
  from blip3o_jax.systems.nexus_gen import verbs
  from blip3o_jax.systems.parts import answer_files
  from blip3o_jax.systems.parts import decoding
  from blip3o_jax.systems.parts import loading

  system, home = systems.SYSTEMS["nexus_gen"], run.parent / "start"
  cfg = loading.config_of(system, run)
  item = "params" if cfg.stage == "language" else "ema"
  settings = released.read_settings(home)
  network = loading.load(system, cfg, f"{run}#{item}@{step}", dtype="float32")
  choice = answer_files.Choice(limits=decoding.Limits(penalty=settings.penalty))
  words = Tokenizer.load(home, prompts.SPECIAL)
  return verbs.Model(cfg, settings, network, words, choice, home)
