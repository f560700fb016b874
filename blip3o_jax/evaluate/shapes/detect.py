"""Objects of the embedded set, found from pixels only.

Every picture is taken as objects on a plain light ground. Pixels that differ from the ground are
grouped by colour and connection; a group is an object if its colour is near one of the palette and
its antialiased silhouette fits one outline (template IoU), well and better than the others. Knows
the outlines and the palette of `data.shapes`, never the scene that was drawn.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from blip3o_jax.data.shapes import COLORS
from blip3o_jax.data.shapes import PALETTE
from blip3o_jax.data.shapes import SHAPES
from blip3o_jax.data.shapes.render import AREAS
from blip3o_jax.data.shapes.render import CENTROIDS
from blip3o_jax.data.shapes.render import coverage

_COLORS: Final = np.asarray([PALETTE[c] for c in COLORS], np.float32)
_COVERED: Final = 0.45  # coverage above which a pixel belongs to an object's core
_DEBRIS: Final = 12.0  # px; a smaller group is noise, a larger one has to be an object
_WINDOW: Final = 22  # px; a larger group is no object
# Least template IoU by shape: a mildly blurred true one stays above, a Gaussian bump (0.86 as a
# circle) and uneven blobs below. The thin tips of a star lose most.
_MIN_IOU: Final = {"circle": 0.88, "square": 0.87, "triangle": 0.85, "star": 0.82, "cross": 0.86}
_MIN_LEAD: Final = 0.02  # IoU of the best outline over the second
_MAX_COLOR_DISTANCE: Final = 85.0
_MAX_GROUPS: Final = 12  # of a picture that are looked at
_BATCH: Final = 256  # images at once, to bound memory


@dataclass(frozen=True)
class Detection:
  """One group of pixels. `shape` and `color` are "" where nothing fits; x, y, half in pixels."""

  shape: str
  color: str
  x: float
  y: float
  half: float
  iou: float
  lead: float


def ground_of(images: np.ndarray) -> np.ndarray:
  """The background of pictures uint8[n, h, w, 3], float32[n, 3].

  It is the median colour, as objects cover less than half of a picture.
  """
  return np.median(images.reshape(len(images), -1, 3), axis=1).astype(np.float32)


def _paint(images: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Nearest palette direction of each pixel int[n, h, w], -1 for ground; difference to ground."""
  away = images.astype(np.float32) - ground[:, None, None, :]
  toward = _COLORS[None] - ground[:, None, :]  # [n, 6, 3]
  length = np.linalg.norm(toward, axis=-1)
  along = away @ (toward / length[..., None]).transpose(0, 2, 1)[:, None]  # [n, h, w, 6]
  color = along.argmax(-1)
  strength = np.linalg.norm(away, axis=-1)
  needed = _COVERED * np.take_along_axis(length[:, None, None, :], color[..., None], -1)[..., 0]
  return np.where(strength >= needed, color, -1), away


def _components(color: np.ndarray) -> np.ndarray:
  """Labels int[n, h, w] of 4-connected pixels of one colour; -1 where color is -1.

  Union by edges on the whole batch: every root takes the least root it touches, then pointers jump.
  """
  flat = np.arange(color.size).reshape(color.shape)
  edges = []
  for a, b in ((np.s_[:, :, :-1], np.s_[:, :, 1:]), (np.s_[:, :-1, :], np.s_[:, 1:, :])):
    joined = (color[a] == color[b]) & (color[a] >= 0)
    edges.append(np.stack([flat[a][joined], flat[b][joined]]))
  one, two = np.concatenate(edges, axis=1)
  parent = flat.ravel().copy()
  while True:
    low = np.minimum(parent[one], parent[two])
    high = np.maximum(parent[one], parent[two])
    open_edges = low != high
    if not open_edges.any():
      break
    one, two = one[open_edges], two[open_edges]
    np.minimum.at(parent, high[open_edges], low[open_edges])
    while True:
      nearer = parent[parent]
      if np.array_equal(nearer, parent):
        break
      parent = nearer
  return np.where(color >= 0, parent.reshape(color.shape), -1)


def _windows(array: np.ndarray, image: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Square cuts [m, 22, 22, ...] of a padded batch with their first pixel at (y, x)."""
  span = np.arange(_WINDOW)
  return array[image[:, None, None], y[:, None, None] + span[:, None], x[:, None, None] + span]


def _grow(mask: np.ndarray) -> np.ndarray:
  """A mask and its 8 neighbours."""
  out = mask.copy()
  out[:, 1:] |= mask[:, :-1]
  out[:, :-1] |= mask[:, 1:]
  wide = out.copy()
  wide[:, :, 1:] |= out[:, :, :-1]
  wide[:, :, :-1] |= out[:, :, 1:]
  return wide


def _blur(windows: np.ndarray) -> np.ndarray:
  """Windows [m, w, w] under the kernel (1, 2, 1) / 4 along both sides; zero outside."""
  out = windows / 2
  out[:, 1:] += windows[:, :-1] / 4
  out[:, :-1] += windows[:, 1:] / 4
  both = out / 2
  both[:, :, 1:] += out[:, :, :-1] / 4
  both[:, :, :-1] += out[:, :, 1:] / 4
  return both


def _fit(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """IoU float[m, 5] of silhouettes [m, w, w] with each outline, and (x, y, half) float[m, 5, 3].

  Area and centroid of the silhouette give each outline's size and centre. The size is tried at
  three scales, since clipping moves the area a little; sharp and blurred by binomial kernels (sigma
  0.7 and 1 pixel), since a decoder blurs.
  """
  span = np.arange(_WINDOW, dtype=np.float32) + np.float32(0.5)
  area = alpha.sum((1, 2))
  cx = (alpha.sum(1) @ span) / area
  cy = (alpha.sum(2) @ span) / area
  iou = np.zeros((len(alpha), len(SHAPES)), np.float32)
  pose = np.zeros((len(alpha), len(SHAPES), 3), np.float32)
  for k, shape in enumerate(SHAPES):
    for scale in (0.94, 1.0, 1.06):
      half = np.sqrt(area / np.float32(AREAS[shape])) * np.float32(scale)
      top = cy - np.float32(CENTROIDS[shape]) * half
      x = span[None, None, :] - cx[:, None, None]
      y = span[None, :, None] - top[:, None, None]
      drawn = coverage(shape, x, y, half[:, None, None])
      for soft in (drawn, _blur(drawn), _blur(_blur(drawn))):
        # The sum of the maximum is both areas less the sum of the minimum.
        common = np.minimum(alpha, soft).sum((1, 2))
        both = common / (area + soft.sum((1, 2)) - common)
        better = both > iou[:, k]
        iou[better, k] = both[better]
        pose[better, k] = np.stack([cx, top, half], -1)[better]
  return iou, pose


def _silhouettes(
  labels: np.ndarray, away: np.ndarray, roots: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Coverage windows of the groups `roots`.

  Returns:
    alpha float[m, 22, 22], colour relative to ground float[m, 3], (image, y, x) int[m, 3] of the
    windows' corners, and whether the group is too large for a window bool[m].
  """
  _, h, w = labels.shape
  order = np.searchsorted(roots, labels)
  order = np.where(order < len(roots), order, 0)
  known = roots[order] == labels
  _, ys, xs = np.nonzero(known)
  group = order[known]
  count = np.bincount(group, minlength=len(roots)).astype(np.float64)
  cy = np.bincount(group, ys, len(roots)) / count
  cx = np.bincount(group, xs, len(roots)) / count
  far = np.zeros(len(roots))
  np.maximum.at(far, group, np.maximum(np.abs(ys - cy[group]), np.abs(xs - cx[group])))
  pad = _WINDOW // 2 + 1
  names = np.pad(np.where(known, labels, -1), ((0, 0), (pad, pad), (pad, pad)), constant_values=-1)
  away = np.pad(away, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  first = roots // (h * w)
  top = np.rint(cy).astype(int) + pad - _WINDOW // 2
  left = np.rint(cx).astype(int) + pad - _WINDOW // 2
  names = _windows(names, first, top, left)
  vectors = _windows(away, first, top, left)
  core = names == roots[:, None, None]
  region = core | (_grow(core) & (names == -1))
  # The colour is that of the pixels farthest from the ground, which are wholly covered.
  strength = np.where(core, np.linalg.norm(vectors, axis=-1), 0).reshape(len(roots), -1)
  sixth = np.take_along_axis(
    np.sort(strength, -1),
    (strength.shape[-1] - 1 - np.minimum(count / 6, 30).astype(int))[:, None],
    -1,
  )
  solid = (strength >= np.maximum(sixth * 0.9, 1e-3)).reshape(core.shape)
  color = (vectors * solid[..., None]).sum((1, 2)) / solid.sum((1, 2))[:, None]
  alpha = np.einsum("mhwc,mc->mhw", vectors, color) / (color**2).sum(-1)[:, None, None]
  alpha = np.where(region, np.clip(alpha, 0, 1), 0).astype(np.float32)
  corner = np.stack([first, top - pad, left - pad], -1)
  return alpha, color, corner, far > _WINDOW / 2 - 2


def _detect(images: np.ndarray) -> list[list[Detection]]:
  out: list[list[Detection]] = [[] for _ in images]
  ground = ground_of(images)
  color, away = _paint(images, ground)
  labels = _components(color)
  roots, sizes = np.unique(labels[labels >= 0], return_counts=True)
  roots = roots[sizes >= _DEBRIS]
  # Of a picture in many pieces (noise) the first ones are enough to see that it is junk.
  image = roots // labels[0].size
  roots = roots[np.arange(len(roots)) - np.searchsorted(image, image) < _MAX_GROUPS]
  if not len(roots):
    return out
  alpha, shade, corner, large = _silhouettes(labels, away, roots)
  iou, pose = _fit(alpha)
  best = iou.argmax(-1)
  ordered = np.sort(iou, -1)
  lead = ordered[:, -1] - ordered[:, -2]
  apart = np.linalg.norm(shade[:, None] + ground[corner[:, 0]][:, None] - _COLORS, axis=-1)
  for m, (i, top, left) in enumerate(corner.tolist()):
    x, y, half = pose[m, best[m]].tolist()
    shape = SHAPES[best[m]]
    if large[m] or ordered[m, -1] < _MIN_IOU[shape] or lead[m] < _MIN_LEAD:
      shape = ""
    named = apart[m].min() <= _MAX_COLOR_DISTANCE
    out[i].append(
      Detection(
        shape,
        COLORS[apart[m].argmin()] if named else "",
        x + left,
        y + top,
        half,
        float(ordered[m, -1]),
        float(lead[m]),
      )
    )
  return out


def detect_many(images: np.ndarray) -> list[list[Detection]]:
  """Finds the objects of pictures.

  Args:
    images: uint8[n, 64, 64, 3].

  Returns:
    One list a picture, in reading order of each group's first pixel; a group of at least 12 pixels
    that is no object is there with shape or color "".

  Raises:
    ValueError: another shape or dtype.
  """
  if images.ndim != 4 or images.shape[1:] != (64, 64, 3) or images.dtype != np.uint8:
    raise ValueError(f"images {images.dtype}{list(images.shape)}: expected uint8[n, 64, 64, 3]")
  out: list[list[Detection]] = []
  for start in range(0, len(images), _BATCH):
    out += _detect(images[start : start + _BATCH])
  return out
