"""Distances of features, against closed forms and against the library fed in the usual way."""

import numpy as np
import pytest

from blip3o_jax.evaluate import distances
from blip3o_jax.evaluate.torch import frechet


def gaussian(rows: int, mean: np.ndarray, root: np.ndarray, seed: int = 0) -> np.ndarray:
  """float64[rows, D] whose sample mean and covariance are exactly `mean` and root @ root.T."""
  x = np.random.default_rng(seed).standard_normal((rows, len(mean)))
  x -= x.mean(0)
  x, _ = np.linalg.qr(x)
  return (x - x.mean(0)) * np.sqrt(rows - 1) @ root.T + mean


def of(features: np.ndarray, part: int = 7) -> distances.Statistics:
  found = distances.empty(features.shape[1])
  for i in range(0, len(features), part):
    found = distances.added(found, features[i : i + part])
  return found


def test_frechet_of_gaussians_that_share_axes():
  pytest.importorskip("torchmetrics")
  mean_a, mean_b = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
  a, b = np.diag([1.0, 2.0, 3.0]), np.diag([2.0, 2.0, 0.5])
  # |m_a - m_b|^2 + sum of (s_a - s_b)^2
  wanted = 1 + 9 + 0 + 1 + 0 + 6.25
  found = frechet.frechet(of(gaussian(40, mean_a, a)), of(gaussian(60, mean_b, b, 1)))
  assert found == pytest.approx(wanted, rel=1e-10)


def test_frechet_of_gaussians_that_do_not():
  pytest.importorskip("torchmetrics")
  # Of two 2x2 matrices trace(sqrt(M)) = sqrt(trace(M) + 2 sqrt(det(M))), M = cov_a cov_b.
  a, b = np.array([[2.0, 0.0], [0.7, 1.0]]), np.array([[1.0, -0.5], [0.3, 1.5]])
  cov_a, cov_b = a @ a.T, b @ b.T
  product = cov_a @ cov_b
  root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
  wanted = np.trace(cov_a) + np.trace(cov_b) - 2 * root
  mean = np.array([100.0, -50.0])  # far from 0: nothing is lost in the sums
  found = frechet.frechet(of(gaussian(30, mean, a)), of(gaussian(30, mean, b, 1)))
  assert found == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("rows", "dimension"), [(200, 16), (10, 32)])
def test_frechet_is_the_library_s_of_the_same_features(rows, dimension):
  torch = pytest.importorskip("torch")
  fid = pytest.importorskip("torchmetrics.image.fid")
  rng = np.random.default_rng(2)
  a, b = rng.standard_normal((2, rows, dimension)) * np.array([1.0, 1.3])[:, None, None]

  class Same(torch.nn.Module):
    num_features = dimension

    def forward(self, x):
      return x

  metric = fid.FrechetInceptionDistance(feature=Same())
  metric.update(torch.from_numpy(a), real=False)
  metric.update(torch.from_numpy(b), real=True)
  assert frechet.frechet(of(a), of(b)) == pytest.approx(float(metric.compute()), rel=1e-6)
  assert frechet.frechet(of(a), of(a)) == pytest.approx(0, abs=1e-5)


def test_frechet_refuses_what_has_none():
  pytest.importorskip("torchmetrics")
  with pytest.raises(ValueError, match="features of 2 and of 3 numbers"):
    frechet.frechet(of(np.ones((4, 2))), of(np.ones((4, 3))))
  with pytest.raises(ValueError, match="1 and 4 pictures"):
    frechet.frechet(of(np.ones((1, 2))), of(np.ones((4, 2))))
  with pytest.raises(ValueError, match="gave 3 numbers a picture, and 2 before"):
    distances.added(of(np.ones((4, 2))), np.ones((4, 3)))


def test_without_the_library_it_is_named(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "torchmetrics", None)
  with pytest.raises(ValueError, match=r"torchmetrics.*pip install 'blip3o-jax\[metrics\]'"):
    frechet.library()


def test_statistics_in_a_file(tmp_path):
  made = of(np.random.default_rng(0).standard_normal((9, 4)))
  path = tmp_path / "some.npz"
  made.save(path)
  found = distances.load(path)
  assert (found.count, found.about) == (9, {})
  assert np.array_equal(found.total, made.total)
  assert np.array_equal(found.products, made.products)
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(ValueError, match="no statistics"):
    distances.load(path)
  np.savez(path, count=3, total=np.ones(3))
  with pytest.raises(ValueError, match="no statistics"):
    distances.load(path)


def test_few_pictures_are_said_to_be():
  assert "singular" in distances.biased("x", of(np.ones((4, 4))))
  few = distances.biased("x", of(np.ones((5, 4))))
  assert "5 pictures are few for features of 4 numbers" in few
  assert "singular" not in few
  assert distances.biased("x", of(np.ones((20, 4)))) == ""


def test_cosines():
  a = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, -2.0]])
  b = np.array([[5.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
  assert distances.cosines(a, b) == pytest.approx([1, 2**-0.5, -1])
  with pytest.raises(ValueError, match="row of zeros"):
    distances.cosines(a, b * 0)
  with pytest.raises(ValueError, match="row by row"):
    distances.cosines(a, b[:2])
