"""BLIP3-o: a frozen language model that reads images, and a generator that makes them."""

from blip3o_jax.systems.blip3o.encoding import encoder as encoder
from blip3o_jax.systems.blip3o.layout import COMPONENTS as COMPONENTS
from blip3o_jax.systems.blip3o.layout import LOOKS_FOR as LOOKS_FOR
from blip3o_jax.systems.blip3o.layout import differences as differences
from blip3o_jax.systems.blip3o.layout import licence as licence
from blip3o_jax.systems.blip3o.layout import parts as parts
from blip3o_jax.systems.blip3o.layout import recognises as recognises
from blip3o_jax.systems.blip3o.layout import stored_as as stored_as
from blip3o_jax.systems.blip3o.model import Blip3o as Blip3o
from blip3o_jax.systems.blip3o.model import Config as Config
from blip3o_jax.systems.blip3o.model import Loss as Loss
from blip3o_jax.systems.blip3o.model import Part as Part
from blip3o_jax.systems.blip3o.model import batch_spec as batch_spec
from blip3o_jax.systems.blip3o.model import build as build
from blip3o_jax.systems.blip3o.model import check as check
from blip3o_jax.systems.blip3o.model import flops as flops
from blip3o_jax.systems.blip3o.prompts import SPECIAL as SPECIAL
from blip3o_jax.systems.blip3o.recordings import recorded as recorded
from blip3o_jax.systems.blip3o.replay import replay as replay
from blip3o_jax.systems.blip3o.rows import rows_of as rows_of
from blip3o_jax.systems.blip3o.samples import sampler as sampler
from blip3o_jax.systems.blip3o.save import exported as exported
from blip3o_jax.systems.blip3o.save import write_json as write_json
from blip3o_jax.systems.blip3o.tasks import transforms as transforms
from blip3o_jax.systems.blip3o.verbs import VERBS as VERBS
from blip3o_jax.systems.blip3o.verbs import load as load
