"""Official benchmarks: what their scorers read, written and looked at. Imports no jax.

A benchmark is a module with the names of `layout.Layout`; `LAYOUTS` has them all.
"""

from types import MappingProxyType
from typing import Final

from blip3o_jax.evaluate.benchmarks import dpg
from blip3o_jax.evaluate.benchmarks import gedit
from blip3o_jax.evaluate.benchmarks import geneval
from blip3o_jax.evaluate.benchmarks import geneval2
from blip3o_jax.evaluate.benchmarks import imgedit
from blip3o_jax.evaluate.benchmarks import oneig
from blip3o_jax.evaluate.benchmarks import wise
from blip3o_jax.evaluate.benchmarks.layout import Layout

LAYOUTS: Final[MappingProxyType[str, Layout]] = MappingProxyType(
  {
    "geneval": geneval,
    "geneval2": geneval2,
    "dpg": dpg,
    "wise": wise,
    "oneig": oneig,
    "gedit": gedit,
    "imgedit": imgedit,
  }
)
