"""The optimiser: clip, then AdamW, or Muon on the block matrices and AdamW elsewhere.

Knows parameters by path and logical axes. Knows no model, and never sees a frozen leaf.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import Literal

import jax
import optax

from blip3o_jax import trees
from blip3o_jax.train import moments
from blip3o_jax.train.moments import by_path

Params = dict[Any, Any]


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """Optimiser and learning rate (spec section 6 for the released values).

  Attributes:
    name: "adamw", or "muon" for block matrices with AdamW on the other leaves.
    lr: peak learning rate. lr_end: floor that the cosine reaches at the last step.
    schedule: "cosine" or "constant", both after the warm-up.
    warmup_steps, warmup_ratio: linear warm-up from 0, in steps or as a share of all steps (rounded
      up); at most one of the two.
    b1, b2, eps: of AdamW. weight_decay: times the learning rate, on kernels alone.
    clip: largest global norm of the gradients of all trained leaves; 0 is off.
    muon_lr: peak learning rate of the block matrices; 0 takes `lr`. muon_beta: their momentum.
    muon_rms: root mean square of a Muon update before the learning rate (0.2 is AdamW's); 0 takes
      optax's sqrt(max(1, out / in)).
    matrices: regexes of the kernels, convolutions among them, that Muon gets; () is every kernel
      of a stacked layer.
    host_moments: the moments of stacked layers lie in the host's memory, and come to the device a
      layer at a time in the update; see `train.moments`.
  """

  name: Literal["adamw", "muon"] = "adamw"
  lr: float = 1e-4
  lr_end: float = 0.0
  schedule: Literal["cosine", "constant"] = "cosine"
  warmup_steps: int = 0
  warmup_ratio: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip: float = 1.0
  muon_lr: float = 0.0
  muon_beta: float = 0.95
  muon_rms: float = 0.2
  matrices: tuple[str, ...] = ()
  host_moments: bool = False

  def __post_init__(self) -> None:
    if self.lr <= 0:
      raise ValueError(f"optimizer.lr {self.lr}: expected a positive number")
    if not 0 <= self.lr_end <= self.lr:
      raise ValueError(f"optimizer.lr_end {self.lr_end}: expected 0 to optimizer.lr {self.lr}")
    if self.warmup_steps and self.warmup_ratio:
      raise ValueError("optimizer.warmup_steps and optimizer.warmup_ratio: set at most one")
    if self.warmup_steps < 0 or not 0 <= self.warmup_ratio <= 1:
      raise ValueError(
        f"optimizer.warmup_steps {self.warmup_steps}, optimizer.warmup_ratio {self.warmup_ratio}: "
        "expected steps >= 0 and a ratio in 0 to 1"
      )
    for name in ("b1", "b2", "muon_beta"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"optimizer.{name} {getattr(self, name)}: expected 0 <= {name} < 1")
    for name in ("eps", "weight_decay", "clip", "muon_lr", "muon_rms"):
      if getattr(self, name) < 0:
        raise ValueError(f"optimizer.{name} {getattr(self, name)}: expected no negative number")
    if self.matrices and self.name != "muon":
      raise ValueError(f"optimizer.matrices is for optimizer.name 'muon', not {self.name!r}")

  def warmup(self, steps: int) -> int:
    """Steps of warm-up in a run of `steps`."""
    return self.warmup_steps or math.ceil(self.warmup_ratio * steps)


def schedule(cfg: Optimizer, steps: int, peak: float = 0.0) -> optax.Schedule:
  """Learning rate by step (0-based): linear from 0 to the peak, then cosine to the floor.

  lr = end + (peak - end) (1 + cos(pi p)) / 2 with p in [0, 1] after the warm-up (spec section 6).

  Args:
    steps: of the whole run. peak: 0 is `cfg.lr`; another peak scales the floor alike.

  Raises:
    ValueError: a warm-up longer than the run.
  """
  peak, warm = peak or cfg.lr, cfg.warmup(steps)
  if warm > steps:
    raise ValueError(f"optimizer.warmup_steps {warm} exceeds steps {steps}")
  if cfg.schedule == "constant" or warm == steps:
    after = optax.constant_schedule(peak)
  else:
    after = optax.cosine_decay_schedule(peak, steps - warm, alpha=cfg.lr_end / cfg.lr)
  if not warm:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warm), after], [warm])


def make(
  cfg: Optimizer, steps: int, axes: Mapping[str, Sequence[str | None]]
) -> optax.GradientTransformation:
  """The gradient transformation for the trained leaves.

  Args:
    steps: of the whole run.
    axes: {path: logical axes} of the trained leaves.

  Raises:
    ValueError: a pattern of `cfg.matrices` that matches no kernel, or Muon without any matrix.
  """
  decayed = {path for path, names in axes.items() if is_kernel(path) and matrix_dims(names) >= 2}

  def mask(params: Params) -> Any:
    return by_path(params, lambda path: path in decayed)

  adamw = optax.adamw(
    schedule(cfg, steps),
    b1=cfg.b1,
    b2=cfg.b2,
    eps=cfg.eps,
    weight_decay=cfg.weight_decay,
    mask=mask,
  )
  rule: optax.GradientTransformation
  if cfg.name == "adamw":
    rule = adamw
  else:
    chosen = set(muon_matrices(cfg, axes))

    def labels(params: Params) -> Any:
      return by_path(params, lambda path: "muon" if path in chosen else "adamw")

    rule = optax.partition({"muon": _muon(cfg, steps), "adamw": adamw}, labels)
  if cfg.host_moments:
    rule = moments.layer_by_layer(rule, on_host(cfg, axes))
  return optax.chain(optax.clip_by_global_norm(cfg.clip), rule) if cfg.clip else rule


def on_host(cfg: Optimizer, axes: Mapping[str, Sequence[str | None]]) -> frozenset[str]:
  """Paths of the leaves whose moments lie in the host's memory.

  Raises:
    ValueError: `host_moments`, and no leaf is of a stacked layer.
  """
  if not cfg.host_moments:
    return frozenset()
  stacked = frozenset(path for path, names in axes.items() if len(names) and names[0] == "layers")
  if not stacked:
    raise ValueError(
      "optimizer.host_moments: no stacked layer among the trained leaves, whose moments could be "
      "moved one by one; leave it off"
    )
  return stacked


def muon_matrices(cfg: Optimizer, axes: Mapping[str, Sequence[str | None]]) -> list[str]:
  """Paths of the kernels that Muon updates: [in, out], [layers, in, out], [kh, kw, in, out].

  A convolution is a matrix from all it reads, (kh, kw, in), to out; it must be named.

  Raises:
    ValueError: a pattern of `cfg.matrices` that matches no kernel, or no matrix at all.
  """
  kernels = [p for p, names in axes.items() if is_kernel(p) and matrix_dims(names) in (2, 4)]
  if cfg.matrices:
    trees.check_patterns(cfg.matrices, kernels or [""], "optimizer.matrices")
    return list(filter(trees.matcher(cfg.matrices), kernels))
  stacked = [p for p in kernels if axes[p][0] == "layers"]
  if not stacked:
    raise ValueError(
      "optimizer.name 'muon': no stacked kernel among the trained leaves; name the matrices in "
      "optimizer.matrices"
    )
  return stacked


def is_kernel(path: str) -> bool:
  """Whether a path is of a weight matrix or convolution: not a bias, scale or embedding."""
  return path.rpartition("/")[2] == "kernel"


def matrix_dims(axes: Sequence[str | None]) -> int:
  """The number of dims of one layer's leaf: a leading `layers` is not one of them."""
  return len(axes) - (len(axes) > 0 and axes[0] == "layers")


def _muon(cfg: Optimizer, steps: int) -> optax.GradientTransformation:
  """optax's Muon: the last dim is the output, a leading layer dim a batch of matrices."""

  def dims(params: Params) -> Any:
    spec = optax.contrib.MuonDimensionNumbers
    # Four dims are a convolution, whose rows are all the values that one output reads.
    reads = {2: (0,), 3: (1,), 4: (0, 1, 2)}
    return jax.tree.map(lambda p: spec(reads[p.ndim], (p.ndim - 1,)), params)

  return optax.contrib.muon(
    schedule(cfg, steps, cfg.muon_lr),
    beta=cfg.muon_beta,
    eps=cfg.eps,
    weight_decay=cfg.weight_decay,
    muon_weight_dimension_numbers=dims,
    consistent_rms=cfg.muon_rms or None,
  )
