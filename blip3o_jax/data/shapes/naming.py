"""Names that fit one object of a scene and no other, for questions and for instructions."""

from blip3o_jax.data.shapes.captions import cell_words
from blip3o_jax.data.shapes.scenes import Object
from blip3o_jax.data.shapes.scenes import Scene


def names(o: Object, scene: Scene) -> list[str]:
  """Those by look, of `circle`, `red object`, `red circle`; [] where another looks the same."""
  out = []
  if sum(p.shape == o.shape for p in scene.objects) == 1:
    out.append(o.shape)
  if sum(p.color == o.color for p in scene.objects) == 1:
    out.append(f"{o.color} object")
  if sum((p.color, p.shape) == (o.color, o.shape) for p in scene.objects) == 1:
    out.append(f"{o.color} {o.shape}")
  return out


def placed_names(o: Object, scene: Scene) -> list[str]:
  """Those by look within the object's quadrant, as `red circle at the top left`, may be []."""
  near = tuple(p for p in scene.objects if p.place == o.place)
  there = Scene(scene.split, scene.seed, scene.index, near, scene.background)
  bare = ["object"] if len(near) == 1 else []
  return [f"{name} at the {o.place}" for name in (*names(o, there), *bare)]


def cell_names(o: Object) -> list[str]:
  """Those by its cell, as `circle at row one column two`; never []."""
  looks = (o.shape, f"{o.color} {o.shape}", "object")
  return [f"{look} at {cell_words(o.row, o.col)}" for look in looks]
