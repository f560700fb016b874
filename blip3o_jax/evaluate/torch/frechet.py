"""Frechet's distance of two sets of features, the FID's: torchmetrics'."""

from blip3o_jax.evaluate import extractors
from blip3o_jax.evaluate.distances import Statistics


def library() -> str:
  """The library of `frechet` with its version.

  Raises:
    ValueError: it is not there.
  """
  try:
    import torch  # noqa: F401
    import torchmetrics
  except ImportError as error:
    raise ValueError(
      f"the FID is torchmetrics', which is not here ({error}): {extractors.EXTRA}"
    ) from None
  return f"torchmetrics {torchmetrics.__version__}"


def frechet(a: Statistics, b: Statistics) -> float:
  """|mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), in float64.

  Raises:
    ValueError: another dimension, or fewer than two rows; no torchmetrics.
  """
  library()
  if a.dimension != b.dimension:
    raise ValueError(f"features of {a.dimension} and of {b.dimension} numbers cannot be compared")
  if min(a.count, b.count) < 2:
    raise ValueError(f"{a.count} and {b.count} pictures: a covariance needs two at least")
  import torch
  from torchmetrics.image.fid import FrechetInceptionDistance

  class Given(torch.nn.Module):
    """The features are what the metric is given."""

    num_features = a.dimension

    def forward(self, features: torch.Tensor) -> torch.Tensor:
      return features

  metric = FrechetInceptionDistance(feature=Given())
  metric.persistent(True)
  # No rows, of the type that the result is to have.
  for real in (True, False):
    metric.update(torch.zeros((0, a.dimension), dtype=torch.float64), real=real)
  state = {}
  for name, each in (("fake", a), ("real", b)):
    state[f"{name}_features_sum"] = torch.from_numpy(each.total)
    state[f"{name}_features_cov_sum"] = torch.from_numpy(each.products)
    state[f"{name}_features_num_samples"] = torch.tensor(each.count)
  metric.load_state_dict(state)
  return float(metric.compute())
