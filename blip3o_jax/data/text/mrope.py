"""Three-axis positions of prompts with pictures.

Numpy, on the host. Source: spec 1.7. Grids are (rows, columns) in patches, one per image, in the
order in which the images occur: row of the batch by row, left to right.
"""

from collections.abc import Sequence

import numpy as np


def mrope_positions(
  tokens: np.ndarray,
  mask: np.ndarray,
  grids: Sequence[tuple[int, int]],
  image_token: int,
  merge: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Positions of time, height and width.

  Text advances all three axes together; an image keeps time constant and counts its merged rows
  and columns, all from the position after the text; the text after it starts at the maximum + 1.

  Args:
    tokens: int[B, T]; an image is a run of `image_token`, one for each merged cell.
    mask: int or bool[B, T], 0 at padding.
    grids: of all images. merge: patches along a side of a merged cell.

  Returns:
    positions int32[3, B, T] (1 at padding) and deltas int32[B, 1]: the s-th generated token stands
    at T + s + delta on all axes, T being the padded length.

  Raises:
    ValueError: runs of image tokens that do not fit the grids.
  """
  batch, length = tokens.shape
  positions = np.ones((3, batch, length), np.int32)
  deltas = np.zeros((batch, 1), np.int32)
  starts = _starts(tokens, mask, grids, image_token, merge)
  for b in range(batch):
    valid = np.flatnonzero(mask[b])
    at, i = 0, 0  # the next position, the next valid token
    while i < len(valid):
      t = int(valid[i])
      if (b, t) in starts:
        h, w = (side // merge for side in grids[starts[b, t]])
        places = valid[i : i + h * w]
        positions[0, b, places] = at
        positions[1:, b, places] = at + np.indices((h, w)).reshape(2, -1)
        at, i = at + max(h, w), i + h * w
      else:
        positions[:, b, t] = at
        at, i = at + 1, i + 1
    deltas[b] = at - length
  return positions, deltas


def _starts(
  tokens: np.ndarray,
  mask: np.ndarray,
  grids: Sequence[tuple[int, int]],
  image_token: int,
  merge: int,
) -> dict[tuple[int, int], int]:
  """{(row, place of the first token): image}, after checking every run against its grid."""
  out: dict[tuple[int, int], int] = {}
  for b, row in enumerate(tokens):
    valid = np.flatnonzero(mask[b])
    is_image = row[valid] == image_token
    i = 0
    while i < len(valid):
      if not is_image[i]:
        i += 1
        continue
      image = len(out)
      if image == len(grids):
        raise ValueError(f"row {b}: image tokens of an image beyond the {len(grids)} grids given")
      h, w = grids[image]
      if h % merge or w % merge or h < 1 or w < 1:
        raise ValueError(f"image {image}: a grid of {h} x {w} patches is not tiled by {merge}")
      cells = h * w // merge**2
      found = int(is_image[i : i + cells].sum())
      if found < cells:
        raise ValueError(f"row {b}: image {image} needs {cells} image tokens, found {found}")
      out[b, int(valid[i])] = image
      i += cells
  if len(out) != len(grids):
    raise ValueError(f"{len(grids)} grids, but the tokens hold {len(out)} images")
  return out
