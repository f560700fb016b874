"""One picture on one device and on two of the same process; prints what was seen as one JSON line.
Needs 2 CPU devices."""

from concurrent import futures
import json
from pathlib import Path
import re

import jax
import numpy as np

from blip3o_jax.diffusion import eps
from blip3o_jax.systems.blip3o import verbs
from blip3o_jax.systems.parts import cores
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts import seeds

TINY = Path(__file__).parents[1] / "data" / "tiny-blip3o"
COMPILED = "/jax/core/compile/backend_compile_duration"
OPTIONS = {"steps": 3, "scale": 2.0}


def homes(network):
  """Whether a module of that name is halved, for what may speak for it or against it."""
  found = cores.halved(network, "unet", 1, guided=True)
  out = {
    "kept": found is cores.halved(network, "unet", 1, guided=True),
    "devices": len(jax.tree.leaves(found.params["unet"])[0].devices()),
    "others": len(jax.tree.leaves(found.params["autoencoder"])[0].devices()),
    "several": cores.halved(network, "unet", 2, guided=True) is network,
    "unguided": cores.halved(network, "unet", 1, guided=False) is network,
  }
  for name, value in (("SMALL", network.nbytes - 1), ("count", lambda: 1)):
    before = getattr(cores, name)
    setattr(cores, name, value)
    out[name] = cores.halved(network, "unet", 1, guided=True) is network
    setattr(cores, name, before)
  return out


def collectives(network, given):
  """The kinds of those in the compiled loop."""
  table = eps.table(network.module().cfg.schedule, 3)
  condition, state = painter._start(
    network, given, seeds.words([5]), np.zeros_like(given), table.start
  )
  steps = table, np.int32(0), np.int32(3)
  looping = cores.halved(network, "unet", 1, guided=True)
  lowered = painter._loop.lower(looping, condition, np.float32(2), state, *steps)
  return re.findall(
    r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", lowered.compile().as_text()
  )


def main():
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if event == COMPILED else None
  )
  model = verbs.load(TINY)
  network = model.decoder
  shape = (model.cfg.grid, model.cfg.grid, model.cfg.channels)
  given = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
  seen = {"devices": len(jax.local_devices())}

  cores.count = lambda: 2
  painter.compile_for(network, 1, shape, guided=True)
  warm, previews = len(compiled), []
  latents = painter.sample(network, given, [5], **OPTIONS)
  pictures = painter.paint(network, given, [5], **OPTIONS)
  watched = painter.paint(
    network, given, [5], **OPTIONS, watch=lambda step: previews.append(step.preview())
  )
  seen["compiled"] = len(compiled) - warm
  seen["watched"] = all(np.array_equal(pictures, x) for x in (watched, previews[-1]))
  with futures.ThreadPoolExecutor(4) as pool:  # of a server, say
    calls = [pool.submit(painter.sample, network, given, [5], **OPTIONS) for _ in range(8)]
    seen["threads"] = all(np.array_equal(latents, c.result(timeout=120)) for c in calls)
  features = model.features(["a cat"], [3], **OPTIONS)
  seen["homes"], seen["collectives"] = homes(network), collectives(network, given)

  cores.count = lambda: 1
  alone = painter.sample(network, given, [5], **OPTIONS)
  seen["latents"] = float(np.abs(alone - latents).max() / np.abs(alone).max())
  alone = model.features(["a cat"], [3], **OPTIONS)
  seen["features"] = float(np.abs(alone - features).max() / np.abs(alone).max())
  print(json.dumps(seen))


if __name__ == "__main__":
  main()
