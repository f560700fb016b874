"""Pixels of the embedded shapes: signed distances on unit outlines, antialiased, all in numpy.

Knows outlines and colours; does not know scenes' sampling, captions or scoring. The scorer draws
its templates with the same outlines (`coverage`).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from blip3o_jax.data.shapes.scenes import CELL
from blip3o_jax.data.shapes.scenes import GRID
from blip3o_jax.data.shapes.scenes import SHAPES
from blip3o_jax.data.shapes.scenes import SIZE
from blip3o_jax.data.shapes.scenes import Scene

_CIRCLE_RADIUS: Final = 1.0


def _star() -> np.ndarray:
  """Ten vertices, one tip up; the widest tips at |x| = 1, the box centred on the origin."""
  angles = -np.pi / 2 + np.pi / 5 * np.arange(10)
  radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45) / np.cos(np.pi / 10)
  points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1)
  points[:, 1] -= (points[:, 1].min() + points[:, 1].max()) / 2
  return points


def _cross(arm: float = 0.36) -> np.ndarray:
  a = arm
  points = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)]
  points += [(a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
  return np.asarray(points, np.float64)


# Vertices in units of the object's `half`, y down, the box centred on the origin.
OUTLINES: Final[dict[str, np.ndarray]] = {
  "square": np.asarray([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
  "triangle": np.asarray([(0.0, -0.866), (1.0, 0.866), (-1.0, 0.866)]),
  "star": _star(),
  "cross": _cross(),
}


def _moments(shape: str) -> tuple[float, float]:
  """Area and y of the centroid of the unit outline (x of the centroid is 0 for every shape)."""
  if shape == "circle":
    return np.pi * _CIRCLE_RADIUS**2, 0.0
  x, y = OUTLINES[shape].T
  x1, y1 = np.roll(x, -1), np.roll(y, -1)
  wedge = x * y1 - x1 * y
  area = wedge.sum() / 2
  return abs(float(area)), float(((y + y1) * wedge).sum() / (6 * area))


AREAS: Final[dict[str, float]] = {shape: _moments(shape)[0] for shape in SHAPES}
CENTROIDS: Final[dict[str, float]] = {shape: _moments(shape)[1] for shape in SHAPES}


def _polygon_distance(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Signed distance to a closed polygon, negative inside; same units and shape as x and y."""
  best = np.full(x.shape, np.inf, x.dtype)
  inside = np.zeros(x.shape, bool)
  for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, 0), strict=True):
    ax, ay, bx, by = (x.dtype.type(v) for v in (ax, ay, bx, by))
    ex, ey = bx - ax, by - ay
    px, py = x - ax, y - ay
    along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
    np.minimum(best, (px - ex * along) ** 2 + (py - ey * along) ** 2, out=best)
    if ey != 0:
      inside ^= ((ay > y) != (by > y)) & (px < ex * py / ey)
  return np.where(inside, -1, 1).astype(x.dtype) * np.sqrt(best)


def coverage(shape: str, x: np.ndarray, y: np.ndarray, half: np.ndarray) -> np.ndarray:
  """The part of each pixel that a shape covers.

  Args:
    shape: one of SHAPES.
    x, y: float[...] pixel centre minus object centre, in pixels, y down.
    half: float, broadcastable to x: half the object's width in pixels.

  Returns:
    float[...] in 0..1.

  Raises:
    KeyError: an unknown shape.
  """
  u, v = np.broadcast_arrays(x / half, y / half)
  if shape == "circle":
    distance = np.hypot(u, v) - u.dtype.type(_CIRCLE_RADIUS)
  else:
    distance = _polygon_distance(OUTLINES[shape], u, v)
  return np.clip(0.5 - distance * half, 0, 1)


def render_many(scenes: Sequence[Scene]) -> np.ndarray:
  """Draws scenes. Returns uint8[n, 64, 64, 3]."""
  ground = np.asarray([s.background for s in scenes], np.float32).reshape(-1, 1, 1, 3)
  canvas = np.broadcast_to(ground, (len(scenes), SIZE, SIZE, 3)).copy()
  # An object stays inside its cell, so each is drawn on 16 x 16 pixels only.
  cells = canvas.reshape(len(scenes), GRID, CELL, GRID, CELL, 3)
  pixel = np.arange(CELL, dtype=np.float32) + np.float32(0.5)
  for shape in SHAPES:
    found = [(i, o) for i, scene in enumerate(scenes) for o in scene.objects if o.shape == shape]
    if not found:
      continue
    image = np.asarray([i for i, _ in found])
    row = np.asarray([o.row for _, o in found])
    col = np.asarray([o.col for _, o in found])
    numbers = np.asarray([(o.x, o.y, o.half, *o.rgb) for _, o in found], np.float32)
    x = pixel[None, None, :] + (col * CELL - numbers[:, 0])[:, None, None].astype(np.float32)
    y = pixel[None, :, None] + (row * CELL - numbers[:, 1])[:, None, None].astype(np.float32)
    alpha = coverage(shape, x, y, numbers[:, 2, None, None])[..., None]
    under = cells[image, row, :, col]
    cells[image, row, :, col] = under + alpha * (numbers[:, None, None, 3:] - under)
  return np.rint(canvas).astype(np.uint8)


def render(scene: Scene) -> np.ndarray:
  """Draws one scene. Returns uint8[64, 64, 3]."""
  return render_many([scene])[0]
