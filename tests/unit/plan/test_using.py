"""What a model needs where it is used: bytes by shape, programs by the compiler, and what fits."""

import json

from commands import command
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip3o_jax import chips
from blip3o_jax import layers
from blip3o_jax import sharding
from blip3o_jax import trees
from blip3o_jax.plan import using
from blip3o_jax.systems import SYSTEMS
from blip3o_jax.systems.blip3o import sizes as blip3o_sizes
from blip3o_jax.systems.nexus_gen import sizes as nexus_sizes
from blip3o_jax.systems.parts.memory import Memory
from blip3o_jax.systems.parts.network import Network
from blip3o_jax.systems.parts.network import program
from blip3o_jax.systems.parts.stages import Ask
from blip3o_jax.systems.parts.stages import Stage
from blip3o_jax.systems.parts.stages import array

GIB = 2**30


class Two(nnx.Module):
  def __init__(self, rngs):
    self.small = layers.linear(64, 64, ("embed", "mlp"), bias=False, rngs=rngs)
    self.large = layers.linear(64, 512, ("embed", "mlp"), bias=False, rngs=rngs)


@program()
def shrink(network, x):
  return network.module().small(x)


@program()
def grow(network, x):
  return jnp.sum(jax.nn.softmax(network.module().large(x)), -1)


def stages(batch):
  module = layers.abstract(Two)
  graphdef, state = nnx.split(module)
  network = Network(graphdef, nnx.to_pure_dict(state))
  x = array(batch, 1000, 64, dtype=np.float32)
  return [Stage("shrink", shrink, (network, x)), Stage("grow", grow, (network, x), cache=7)]


def test_programs_are_counted_by_what_they_read():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  use = using.used("two", "float32", stages, mesh, "here")
  assert use.modules == {"small": 64 * 64 * 4, "large": 64 * 512 * 4}
  small, large = use.stages[1]
  assert (small.reads, large.reads) == (("small",), ("large",))
  assert (small.parameters, large.parameters) == (64 * 64 * 4, 64 * 512 * 4)
  x = 1000 * 64 * 4
  assert small.beside >= 2 * x  # what comes and what goes
  assert use.stages[4][1].beside > 3 * large.beside
  assert (large.cache, large.name) == (7, "grow")
  held, name = use.needs(1, False)
  assert held == sum(use.modules.values()) + max(small.beside, large.beside)
  assert use.needs(1, True)[0] < held
  assert name in ("shrink", "grow")


def made(beside=1 * GIB, parameters=(10 * GIB, 4 * GIB)):
  """A model of two modules, each of a stage of its own; batches cost `beside` each, 1 GiB less."""

  def both(batch):
    return [
      using.Stage("read", ("lm",), parameters[0], beside * batch, 0, 0),
      using.Stage("draw", ("dit",), parameters[1], 2 * beside * batch - GIB, 0, 0),
    ]

  return using.Use(
    "m", "bf16", {"lm": parameters[0], "dit": parameters[1]}, {1: both(1), 4: both(4)}
  )


def test_what_fits_by_hand():
  use = made()
  assert use.needs(1, False) == (15 * GIB, "read")
  assert use.needs(2, False) == (14 * GIB + 3 * GIB, "draw")
  assert use.needs(8, False) == (14 * GIB + 15 * GIB, "draw")
  assert use.needs(1, True) == (11 * GIB, "read")
  assert use.fits(15 * GIB - 1, False) == 0
  assert use.fits(15 * GIB, False) == 1
  assert use.fits(17 * GIB, False) == 2
  assert use.fits(14 * GIB, True) == 4
  table = using.table([use], ["l4", "v5e"])
  assert table[0].startswith("| model | stored as |")
  cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table[2:]]
  assert [row[3] for row in cells] == ["on the device", "on the host"]
  # 24e9 bytes are 22.35 GiB, v5e gives 15.75: 14 + 2 b - 1 and 10 + b or 4 + 2 b - 1.
  assert [row[-2:] for row in cells] == [["4", "1"], ["8", "4"]]
  assert json.loads(json.dumps(using.facts(use, ["l4"])))["fits"]["l4"]["device"] == 4


def parameters(name, cfg, **options):
  """{module: parameters} of the stages of a released size."""
  found = {}
  for stage in SYSTEMS[name].stages(cfg, Ask(**options)):
    for module, tree in stage.network.params.items():
      found[module] = trees.flatten(tree)
  return found


def count(tree):
  return sum(x.size for x in tree.values())


@pytest.mark.parametrize(("size", "understanding"), [("4b", 3_754_074_112), ("8b", 8_289_328_128)])
def test_the_modules_of_blip3o_are_those_of_the_release(size, understanding):
  found = parameters("blip3o", blip3o_sizes.released(size))
  assert count(found["backbone"]) + count(found["visual"]) == understanding
  assert count(found["encoder"]) == 4_350_208_256
  assert count(found["unet"]) == 2_525_520_644
  assert {str(x.dtype) for x in found["backbone"].values()} == {"bfloat16"}
  assert {str(x.dtype) for x in found["autoencoder"].values()} == {"float32"}
  int8 = parameters("blip3o", blip3o_sizes.released(size), memory=Memory(int8=True))
  kernels = [p for p, x in int8["backbone"].items() if str(x.dtype) == "int8"]
  assert len(kernels) == 7  # q, k, v, o and three of the MLP, each a stack
  scales = sum(x.size for p, x in int8["backbone"].items() if p.endswith("/scale") and x.ndim == 2)
  assert count(int8["backbone"]) - scales <= count(found["backbone"])
  assert count(int8["encoder"]) == count(found["encoder"])


def test_the_modules_of_nexus_gen_are_those_of_the_release():
  found = parameters("nexus_gen", nexus_sizes.released())
  dits = [count({p: x for p, x in found[n].items() if p.startswith("dit/")}) for n in DECODERS]
  assert dits == [11_901_408_320] * 2
  assert set(found) >= {"backbone", "visual", "vision_head", "slots", "autoencoder", "constants"}


DECODERS = ("generator", "editor")


def test_stages_read_what_they_say():
  read = {s.name: s.used() for s in SYSTEMS["blip3o"].stages(blip3o_sizes.released("4b"), Ask())}
  assert read == {
    "language model: condition": {"backbone", "slots"},
    "denoiser: steps": {"denoiser"},
    "UNet: steps": {"unet"},
    "autoencoder: pixels": {"autoencoder"},
    "image encoder": {"encoder"},
    "chat: prompt": {"backbone"},
    "chat: words": {"backbone"},
  }


def test_devices_by_name():
  assert chips.room("v5e") == int(15.75 * GIB)
  assert chips.room("tpu7x") == int(189.5 * GIB / 2)  # two devices a chip
  assert chips.room("l4") == 24_000_000_000
  assert all(source for _, source in chips.CARDS.values())
  assert not chips.CARDS.keys() & chips.CHIPS.keys()


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--config=blip3o_4b_sft", "--device=h1000"], "device 'h1000': expected one of v4"),
    (["--device=l4"], "--generate: expected --config NAME or --model DIR"),
    (["--config=blip3o_4b_sft", "--dtype=int4", "--topology=here"], "--dtype int4: expected some"),
  ],
)
def test_errors_are_one_line(args, message, capsys):
  assert command("plan")("--generate", *args) == 1
  said = capsys.readouterr().err
  assert message in said
  assert "Traceback" not in said


def test_help_of_use(capsys):
  with pytest.raises(SystemExit) as status:
    command("plan")("--generate", "--help")
  assert status.value.code == 0
  assert "--device" in capsys.readouterr().out
