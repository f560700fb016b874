import numpy as np
import pytest

from blip3o_jax.data.text import mrope

IMAGE = 9


def pad(*rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
  length = max(map(len, rows))
  tokens = np.array([[0] * (length - len(r)) + r for r in rows])
  return tokens, np.array([[0] * (length - len(r)) + [1] * len(r) for r in rows])


def test_two_images_in_a_row_and_a_row_without():
  tokens, mask = pad([1, *[IMAGE] * 6, 2, *[IMAGE] * 2, 3], [4, 5, 6])
  positions, deltas = mrope.mrope_positions(tokens, mask, [(4, 6), (4, 2)], IMAGE, 2)
  # the first is 2 x 3 cells from 1, so text goes on at 4; the second 2 x 1 from 5, text at 7
  assert positions[0, 0].tolist() == [0, 1, 1, 1, 1, 1, 1, 4, 5, 5, 7]
  assert positions[1, 0].tolist() == [0, 1, 1, 1, 2, 2, 2, 4, 5, 6, 7]
  assert positions[2, 0].tolist() == [0, 1, 2, 3, 1, 2, 3, 4, 5, 5, 7]
  assert positions[:, 1].tolist() == [[1] * 8 + [0, 1, 2]] * 3
  assert deltas.tolist() == [[8 - 11], [3 - 11]]
  assert positions.dtype == deltas.dtype == np.int32


def test_neighbouring_images_are_told_apart_by_their_grids():
  tokens, mask = pad([*[IMAGE] * 3])
  positions, _ = mrope.mrope_positions(tokens, mask, [(2, 4), (2, 2)], IMAGE, 2)
  assert positions[:, 0].T.tolist() == [[0, 0, 0], [0, 0, 1], [2, 2, 2]]


@pytest.mark.parametrize(
  ("grids", "message"),
  [
    ([(4, 8)], "needs 8 image tokens, found 6"),
    ([(4, 4)], "beyond the 1 grids"),
    ([(4, 6), (2, 2)], "the tokens hold 1 images"),
    ([(3, 4)], "not tiled"),
  ],
)
def test_faults(grids, message):
  tokens, mask = pad([1, *[IMAGE] * 6, 2])
  with pytest.raises(ValueError, match=message):
    mrope.mrope_positions(tokens, mask, grids, IMAGE, 2)


def test_an_image_token_id_at_padding_is_padding():
  tokens, mask = np.array([[IMAGE, 1, 2]]), np.array([[0, 1, 1]])
  positions, deltas = mrope.mrope_positions(tokens, mask, [], IMAGE, 2)
  assert positions[0].tolist() == [[1, 0, 1]]
  assert deltas.tolist() == [[-1]]
