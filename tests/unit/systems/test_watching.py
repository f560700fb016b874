"""Verbs that are watched between steps: the same pictures, previews, and calls that are ended."""

from collections.abc import Callable
from pathlib import Path
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from blip3o_jax.systems.blip3o import verbs as blip3o
from blip3o_jax.systems.nexus_gen import verbs as nexus_gen
from blip3o_jax.systems.nexus_gen.replay import with_null
from blip3o_jax.systems.parts import painter
from blip3o_jax.systems.parts import watching
from blip3o_jax.weights.safetensors import Tensors

DATA = Path(__file__).parents[2] / "data"
TEXTS, SEEDS = ["a cat", "two dogs", "sky"], [3, 2**40, 5]  # three, which are padded to four
GREY = Image.new("RGB", (56, 84), (90, 120, 30))
RED = Image.new("RGB", (70, 60), (200, 20, 30))
Call = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def drawing() -> blip3o.Model:
  return blip3o.load(DATA / "tiny-blip3o")


@pytest.fixture(scope="module")
def editing() -> nexus_gen.Model:
  recorded = Tensors(DATA / "tiny-nexus-gen" / "io.safetensors")
  pooled, context = (recorded.read(n)[0] for n in ("cond.pooled", "cond.negative_context"))
  return with_null(nexus_gen.load(DATA / "tiny-nexus-gen"), pooled, context)


class Stop(Exception):
  """Somebody has seen enough."""


def watched(call: Call, shown: Callable[[watching.Step], bool]) -> tuple[np.ndarray, list[Any]]:
  """What a call gives while somebody watches, and (stage, done, total, preview or None) as seen."""
  seen: list[Any] = []

  def watch(step: watching.Step) -> None:
    looked = shown(step) and step.preview is not None
    seen.append((*step[:3], step.preview() if looked and step.preview else None))

  return call(watch=watch), seen


def check(call: Call, wanted: list[tuple[str, int, int]], stages: set[str]) -> list[Any]:
  """That a call is the same picture watched, looked at and not; returns what was seen of it.

  `wanted` are the steps, `stages` those that have previews.
  """
  plain, threads = call(), threading.active_count()
  found, seen = watched(call, lambda step: False)
  np.testing.assert_array_equal(found, plain)
  assert [step[:3] for step in seen] == wanted
  found, seen = watched(call, lambda step: True)
  np.testing.assert_array_equal(found, plain)
  for stage, _, _, preview in seen:
    assert (preview is not None) == (stage in stages)
    if preview is not None:
      assert (preview.shape, preview.dtype) == (plain.shape, np.uint8)
  np.testing.assert_array_equal(seen[-1][3], plain)  # after the last step it is what comes out
  for at in (1, len(wanted)):
    told: list[watching.Step] = []

    def stop(step: watching.Step, at: int = at, told: Any = told) -> None:
      told.append(step)
      if len(told) == at:
        raise Stop

    with pytest.raises(Stop):
      call(watch=stop)
    assert [step[:3] for step in told] == wanted[:at]
  assert threading.active_count() <= threads
  np.testing.assert_array_equal(call(), plain)
  return seen


def steps(stage: str, total: int) -> list[tuple[str, int, int]]:
  return [(stage, done, total) for done in range(1, total + 1)]


def test_pictures_drawn_by_blip3o(drawing: blip3o.Model) -> None:
  def call(**told: Any) -> np.ndarray:
    return drawing.generate(TEXTS, SEEDS, steps=3, pixel_steps=2, **told)

  wanted = steps("features", 3) + steps("pixels", 2)
  seen = check(call, wanted, {"features", "pixels"})
  # The features have come to their end, and no fewer steps are asked for than the preview takes.
  np.testing.assert_array_equal(seen[2][3], call())


def test_a_preview_is_of_few_steps_and_of_what_is_expected(
  drawing: blip3o.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
  """It does not have to be asked for at once: what it shows is what it was given."""
  taken: list[tuple[int, int]] = []
  paint = painter.paint

  def counted(network: Any, features: Any, *args: Any, **told: Any) -> np.ndarray:
    taken.append((len(features), told["steps"]))
    return paint(network, features, *args, **told)

  monkeypatch.setattr(painter, "paint", counted)
  kept: list[watching.Step] = []
  features = drawing.features(TEXTS, SEEDS, steps=3, sampler="heun", watch=kept.append)
  assert [step.preview is None for step in kept] == [False] * 3
  late = [step.preview() for step in kept if step.preview]
  assert taken == [(3, blip3o.PREVIEW)] * 3
  assert all(np.abs(late[i].astype(int) - late[i + 1]).max() > 0 for i in (0, 1))
  np.testing.assert_array_equal(late[-1], drawing.paint(features, SEEDS, pixel_steps=4))
  again = drawing.features(TEXTS, SEEDS, steps=3, sampler="heun")
  np.testing.assert_array_equal(features, again)
  bare = blip3o.Model(drawing.cfg, drawing.settings, drawing.system, None, drawing.tokenizer)
  bare.features(TEXTS[:2], SEEDS[:2], steps=1, watch=kept.append)
  assert kept[-1].preview is None


def test_pictures_rebuilt_by_blip3o(drawing: blip3o.Model) -> None:
  def call(**told: Any) -> np.ndarray:
    return drawing.reconstruct([GREY, RED, GREY], SEEDS, pixel_steps=3, **told)

  check(call, steps("pixels", 3), {"pixels"})


SMALL: dict[str, Any] = {"size": 16, "steps": 3, "scale": 2.0}


@pytest.mark.parametrize(
  "verb", ["generate", pytest.param("edit", marks=pytest.mark.slow), "reconstruct"]
)
def test_pictures_of_nexus_gen(editing: nexus_gen.Model, verb: str) -> None:
  asked = {
    "generate": lambda **told: editing.generate(TEXTS, SEEDS, **SMALL, **told),
    "edit": lambda **told: editing.edit([GREY, RED, GREY], TEXTS, SEEDS, **SMALL, **told),
    "reconstruct": lambda **told: editing.reconstruct([GREY, RED, GREY], SEEDS, **SMALL, **told),
  }
  wanted = [] if verb == "reconstruct" else [("features", 1, 1)]
  seen = check(asked[verb], wanted + steps("pixels", 3), {"pixels"})
  early, late = (x[3].astype(int) for x in seen[-2:])
  assert np.abs(early - late).max() > 0


def test_a_watched_loop_is_called_step_by_step() -> None:
  asked: list[tuple[int, int]] = []

  def advance(state: jax.Array, first: np.int32, last: np.int32) -> jax.Array:
    asked.append((int(first), int(last)))
    return state + int(last - first)

  seen: list[Any] = []

  def look(state: jax.Array, done: int) -> np.ndarray:
    return np.asarray([state, done])

  assert watching.run(advance, jnp.zeros(()), 3, None, "a", look) == 3
  assert asked == [(0, 3)]
  assert watching.run(advance, jnp.zeros(()), 3, seen.append, "a", look) == 3
  assert asked[1:] == [(0, 1), (1, 2), (2, 3)]
  assert [step.preview().tolist() for step in seen] == [[1, 1], [2, 2], [3, 3]]
  made = jnp.ones((2,))
  assert watching.once(made, None, "b", np.negative) is made
  assert watching.once(made, seen.append, "b", np.negative) is made
  assert seen[-1][:3] == ("b", 1, 1)
  assert seen[-1].preview().tolist() == [-1, -1]


def test_a_paced_loop_is_called_after_as_many_steps_as_take_so_long(monkeypatch) -> None:
  """A step takes .25 s here, the first one two."""
  now, asked, seen = [0.0], [], []
  monkeypatch.setattr(watching.time, "monotonic", lambda: now[0])

  def advance(state: jax.Array, first: np.int32, last: np.int32) -> jax.Array:
    asked.append((int(first), int(last)))
    now[0] += 0.25 * (last - first) if first else 2.0
    return state + int(last - first)

  watch = watching.Paced(seen.append, 1.0)
  assert watching.run(advance, jnp.zeros(()), 12, watch, "a") == 12
  assert asked == [(0, 1), (1, 2), (2, 6), (6, 10), (10, 12)]
  assert [step.done for step in seen] == [1, 2, 6, 10, 12]
  for every in (0.0, 0.1):
    asked.clear()
    watching.run(advance, jnp.zeros(()), 4, watching.Paced(seen.append, every), "a")
    assert asked == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_state_lies_as_the_first_one_at_every_step() -> None:
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("x",))
  one, other = (jax.sharding.NamedSharding(mesh, jax.P(*axes)) for axes in ((), ("x",)))
  seen: list[Any] = []

  def advance(state: jax.Array, first: np.int32, last: np.int32) -> jax.Array:
    seen.append(state.sharding)
    return jax.device_put(state + 1, other)

  start = jax.device_put(jnp.zeros((2,)), one)
  found = watching.run(advance, start, 3, lambda step: None, "a")
  assert found.tolist() == [3, 3]
  assert seen == [one] * 3
