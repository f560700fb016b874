"""What a run needs on chips that are not there: compiles its step for a described topology.

Prints the table of parameters, memory, operations, collectives, the roofline, and by the compiler's
own cycles the time of a step and of the run. Needs libtpu, no TPU and no weights; takes minutes the
first time and seconds when the same step was planned before. `--topology=here` compiles for the
devices of this machine; of GPUs that are not here nothing is compiled, their times are bounds. A
step that does not fit is refused, with what would fit.
"""

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
import json
from pathlib import Path
import re
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from blip3o_jax import chips
from blip3o_jax import config
from blip3o_jax import files
from blip3o_jax import recipes
from blip3o_jax import sharding
from blip3o_jax import systems
from blip3o_jax.plan import estimate
from blip3o_jax.plan import report
from blip3o_jax.plan import stored
from blip3o_jax.plan import topology
from blip3o_jax.plan import using
from blip3o_jax.sharding import MESH_AXES
from blip3o_jax.systems.parts import loading
from blip3o_jax.systems.parts import memory
from blip3o_jax.systems.parts.stages import Ask
from blip3o_jax.train import run as train_run
from blip3o_jax.train import setup as train_setup

DTYPES = ("float32", "bfloat16", "int8")  # int8: of the blocks, in bfloat16 the rest
BUCKET = 160  # tokens of a prompt, where the config has that bucket
SMALL = "memory=small after the config's colon (recomputes in the backward pass)"


def fewer_layers(values: ConfigDict, layers: int) -> None:
  """Gives each network of a model's config at most so many layers."""
  for name, value in values.items():
    if isinstance(value, ConfigDict):
      fewer_layers(value, layers)
    elif name == "depth" and value > layers:
      values[name] = layers
    elif name == "full_layers":  # which layers of the tower look at the whole picture
      values[name] = tuple(i for i in value if i < layers)


def plan(
  options: argparse.Namespace, overrides: Sequence[str], name: str, mesh: str
) -> tuple[dict[str, Any], str]:
  """(figures, the compiled text) of one topology and mesh, and says what is done.

  Raises:
    ValueError: a topology, mesh, batch or config that does not fit together, or the chip.
  """
  values = config.load(options.config, overrides, recipes.RELEASED)
  where = topology.resolve(name, options.slices)
  price = price_of(options.price, where)
  devices = topology.devices(where)
  samples = values.steps * values.batch
  if mesh:
    values.mesh.update(sharding.axes_of(mesh))
  if where.slices > 1 and values.mesh.replica % where.slices:
    values.mesh.replica *= where.slices
    print(f"mesh.replica {values.mesh.replica}: the axis that crosses {where.slices} slices")
  if options.batch_per_chip:
    values.batch = options.batch_per_chip * len(devices) // chips.devices_a_chip(devices)
  if options.layers:
    fewer_layers(values.model, options.layers)
  run = train_run.parse(values, systems.SYSTEMS)
  buckets = run.data.buckets
  bucket = options.prompt_bucket or (BUCKET if BUCKET in buckets else max(buckets))
  setup = train_setup.prepare(run, systems.SYSTEMS[run.system], devices)
  print(*estimate.table(setup), sep="\n", flush=True)
  small = SMALL if re.search(r"blip3o_\db_", options.config) else ""
  small = "" if "memory=small" in options.config else small
  asked = estimate.Asked(where, bucket, samples, options.layers, options.recompile, small)
  if where.name != "here" and where.chip is not None and not where.chip.is_tpu:
    facts, text = estimate.analytic(setup, asked), ""
  else:
    again = options.recompile
    cycle = estimate.seconds_a_cycle(devices, where.name, again) if where.name != "here" else 0.0
    done = estimate.compiled(setup, asked)
    facts, text = estimate.figures(setup, asked, done, cycle), done.text
  if price:
    hours = facts["run_chip_hours"]
    facts |= {"price": price, "run_cost": hours * price if hours else None}
  facts["versions"] = stored.versions()
  print(*report.lines(facts), sep="\n", flush=True)
  return facts, text


def price_of(text: str, where: topology.Topology) -> float:
  """The price of a chip-hour: a number, or `v5p=4.2,v6e=2.7`; 0 where none is given.

  Raises:
    ValueError: neither.
  """
  for word in filter(None, text.split(",")):
    name, _, number = word.rpartition("=")
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", number) or (name and name not in chips.CHIPS):
      known = ", ".join(chips.CHIPS)
      raise ValueError(f"--price {text}: expected a number, or CHIP=NUMBER,... of {known}")
    if not name or (where.chip is not None and name == where.chip.name):
      return float(number)
  return 0.0


def asked_for(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
  """(topology, mesh) of each plan that the options ask for."""
  names = [x for each in options.topology or ["v5e:4x4"] for x in each.split(",")]
  shapes = list(options.mesh or [])
  for word in options.compare or ():
    if "=" in word:
      shapes.append(word)
    else:
      given = [x for x in word.split(",") if x]
      names = [*(names if options.topology else []), *given]
      options.topology = names
  if options.compare is not None and len(names) == 1 and len(shapes) < 2:
    where = topology.resolve(names[0], options.slices)
    count = len(topology.devices(where)) if where.name != "here" else len(jax.devices())
    ways = {n for n in (1, 2, 4, 8) if count % n == 0}
    shapes += [f"fsdp={count // n},replica={n}" for n in sorted(ways)]
  seen = [(name, shape) for name in names for shape in shapes or [""]]
  if options.compare is None and len(seen) > 1:
    raise ValueError("several topologies or meshes: say --compare to have them side by side")
  yield from dict.fromkeys(seen)


def run(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Plans what the arguments say; returns the exit status."""
  if "--generate" in args:
    return _generate(parser, args)
  options, overrides = _options(parser).parse_known_args(args)
  if options.topology != ["here"]:
    jax.config.update("jax_platforms", "cpu")
  # JAX would write what it can never read back, and warn of it.
  jax.config.update("jax_enable_compilation_cache", False)
  for path in filter(None, (options.json, options.text)):
    if not path.absolute().parent.is_dir():
      raise ValueError(f"{path}: no such folder; nothing was planned")
  plans: list[dict[str, Any]] = []
  texts: list[str] = []
  refused: list[str] = []
  for name, mesh in asked_for(options):
    try:
      facts, text = plan(options, overrides, name, mesh)
    except ValueError as error:
      if options.compare is None:
        raise
      refused.append(f"{name}{' ' + mesh if mesh else ''}: {error}")
      print(f"refused: {refused[-1]}", flush=True)
      continue
    plans.append(facts)
    texts.append(text)
  if not plans:
    raise ValueError(f"none of them: {'; '.join(refused)}")
  index = report.best(plans)[0]
  if options.compare is not None:
    print(*report.side_by_side(plans, refused), sep="\n")
  if options.text:
    if not texts[index]:
      raise ValueError(
        f"--text {options.text}: nothing was compiled for {plans[index]['topology']}"
      )
    files.write_text(options.text, texts[index])
    print(f"the compiled program: {options.text}")
  if options.json:
    more = {"compared": plans, "refused": refused} if options.compare is not None else {}
    files.write_text(options.json, json.dumps(plans[index] | more, indent=1) + "\n")
  return 0


def _options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
  add = parser.add_argument
  add("--generate", action="store_true", help="plans use, not training: see --generate --help")
  add("--config", required=True, metavar="FILE[:ARG]", help="a file, or a stage's name")
  add("--config.FIELD", dest="_", metavar="VALUE", help="any field, e.g. --config.batch=256")
  add(
    "--topology",
    action="append",
    help="v5p:4x4x4, or as a cloud sells it: v5p-128, v5litepod-16; GPUs: h100:8; or here "
    "(default v5e:4x4)",
  )
  add("--slices", type=_count(1), default=1, help="of the topology; mesh.replica crosses them")
  add("--mesh", action="append", metavar="AXIS=N,...", help="e.g. fsdp=16,replica=4")
  add("--batch-per-chip", type=_count(1), default=0, help="samples (default: the config's batch)")
  add("--prompt-bucket", type=_count(1), default=0, help=f"tokens (default {BUCKET}, or longest)")
  add("--layers", type=_count(1), default=0, help="of each network at most: a quick look")
  add("--price", default="", help="of a chip-hour: 4.2, or v5p=4.2,v6e=2.7")
  add(
    "--compare",
    nargs="*",
    metavar="TOPOLOGY|MESH",
    help="several side by side, the best marked; without any, the usual meshes",
  )
  add("--json", type=Path, metavar="FILE", help="writes the figures; of --compare the best's")
  add("--text", type=Path, metavar="FILE", help="writes the compiled program")
  add("--recompile", action="store_true", help="compiles what was planned before")
  return parser


def _generate(parser: argparse.ArgumentParser, args: Sequence[str]) -> int:
  """Plans the use of models: prints what each of them needs, and what fits where."""
  options = _generate_options(parser).parse_args(args)
  for name in (devices := options.device.split(",")):
    chips.room(name)
  if not options.config and not options.model:
    raise ValueError("--generate: expected --config NAME or --model DIR, of what to plan")
  if options.topology != "here":
    jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)
  where = topology.resolve(options.topology)
  placed = topology.devices(where)
  asked = sharding.axes_of(options.mesh) if options.mesh else dict.fromkeys(MESH_AXES, 1)
  mesh = sharding.make_mesh(**asked, devices=placed if options.mesh else placed[:1])
  found = []
  models = [(name, None) for name in options.config or ()]
  for name, directory in (*models, *((m, Path(m)) for m in options.model or ())):
    system, cfg = _model(name, directory)
    for kind in options.dtype.split(","):
      found.append(_use(name, (system, cfg, directory), kind, options, mesh))
      print(*using.lines(found[-1], f"as compiled for {where.name}"), sep="\n", flush=True)
  print("", *using.table(found, devices), sep="\n")
  if options.json:
    facts = [using.facts(use, devices) for use in found]
    files.write_text(options.json, json.dumps(facts, indent=1) + "\n")
  return 0


def _model(name: str, directory: Path | None) -> tuple[Any, Any]:
  """(system, config) of a stage's name, of a config file or of a model's directory."""
  if directory is not None:
    system = systems.SYSTEMS[systems.of(directory)]
    return system, loading.config_of(system, directory)
  run = train_run.parse(config.load(name, [], recipes.RELEASED), systems.SYSTEMS)
  return systems.SYSTEMS[run.system], run.model


def _use(
  name: str, model: tuple[Any, Any, Path | None], kind: str, options: argparse.Namespace, mesh: Any
) -> using.Use:
  if kind not in DTYPES:
    raise ValueError(f"--dtype {kind}: expected some of {', '.join(DTYPES)}")
  system, cfg, directory = model
  how = memory.Memory(mesh=mesh, int8=kind == "int8", tile=options.tile)
  dtype: Any = "bfloat16" if kind == "int8" else kind

  def stages(batch: int) -> Any:
    return system.stages(cfg, Ask(dtype, how, batch, options.prompt_bucket or BUCKET, directory))

  print(f"{name}, {kind}: compiling", file=sys.stderr, flush=True)
  return using.used(name, kind, stages, mesh, options.topology, (1, options.batch))


def _generate_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
  parser.description = (
    "What the use of a model needs: bytes of its parts, of the programs of each stage as compiled "
    "for a described device, and what fits where. Needs no weights."
  )
  add = parser.add_argument
  add("--generate", action="store_true", required=True)
  add("--config", action="append", metavar="NAME", help="a stage's name, such as blip3o_4b_sft")
  add("--model", action="append", metavar="DIR", help="a directory of a model")
  add("--device", default="v5e,v6e,v5p,l4,rtx4090,l40s,a100,h100", metavar="KIND,...")
  add("--dtype", default="bfloat16", metavar=",".join(DTYPES), help="one or several")
  add("--batch", type=_count(2), default=4, help="beside 1, from which others follow (default 4)")
  add("--prompt-bucket", type=_count(1), default=0, help=f"tokens (default {BUCKET})")
  add("--mesh", default="", metavar="AXIS=N,...", help="over the devices of the topology")
  add("--tile", type=_count(0), default=0, metavar="PIXELS", help="see blip3o generate --tile")
  add(
    "--topology",
    default="v5p:1x1x1",
    help="whose compiler counts what programs need (default v5p:1x1x1); here: this machine's",
  )
  add("--json", type=Path, metavar="FILE", help="writes the figures")
  return parser


def _count(least: int) -> Any:
  def read(text: str) -> int:
    if not text.isdigit() or int(text) < least:
      raise argparse.ArgumentTypeError(f"{text!r}: expected a number of at least {least}")
    return int(text)

  return read
