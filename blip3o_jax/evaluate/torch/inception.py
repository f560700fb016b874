"""The network that the FID is defined by, as an extractor: torch-fidelity's."""

import hashlib
from pathlib import Path
import pickle

import numpy as np

from blip3o_jax.evaluate import extractors
from blip3o_jax.evaluate.extractors import Extractor

INCEPTION = "2048"  # of torch-fidelity's layers that the FID is defined on


def inception(weights: Path | None = None) -> Extractor:
  """The Inception network that the FID is defined by, of torch-fidelity.

  Args:
    weights: its file; None fetches it.

  Raises:
    ValueError: a library is not there. OSError: the weights are not, or cannot be fetched.
  """
  if weights is not None and not weights.is_file():
    raise FileNotFoundError(f"{weights}: no such file of weights")
  try:
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as ADDRESS
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
  except (ImportError, RuntimeError) as error:  # the second of a torchvision for another torch
    raise ValueError(
      f"the FID's own extractor is torch-fidelity's, which is not here ({error}): "
      f"{extractors.EXTRA}; or name another with --extractor MODULE:FUNCTION"
    ) from None
  try:
    network = FeatureExtractorInceptionV3(
      "inception-v3-compat", [INCEPTION], feature_extractor_weights_path=weights and str(weights)
    )
  except OSError as error:  # no network, or no such page
    raise OSError(
      f"{ADDRESS}: the weights of Inception cannot be fetched ({error}); fetch the file elsewhere "
      "and name it with --inception FILE, or another extractor with --extractor MODULE:FUNCTION"
    ) from None
  except (RuntimeError, LookupError, EOFError, pickle.UnpicklingError) as error:
    first = str(error).strip().split("\n")[0]
    raise ValueError(f"{weights or ADDRESS}: not the weights of Inception: {first}") from None
  device = "cuda" if torch.cuda.is_available() else "cpu"
  network = network.eval().to(device)

  def call(pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
      given = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).to(device)
      return network(given)[0].cpu().numpy()

  mark = hashlib.sha256()
  for name, value in sorted(network.state_dict().items()):
    mark.update(name.encode() + value.cpu().numpy().tobytes())
  return Extractor("torch-fidelity:inception-v3-compat", f"sha256:{mark.hexdigest()}", call)
