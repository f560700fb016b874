"""Nexus-Gen: a language model that reads pictures and predicts them, and two painters of them."""

from blip3o_jax.systems.nexus_gen.encoding import encoder as encoder
from blip3o_jax.systems.nexus_gen.layout import COMPONENTS as COMPONENTS
from blip3o_jax.systems.nexus_gen.layout import LOOKS_FOR as LOOKS_FOR
from blip3o_jax.systems.nexus_gen.layout import differences as differences
from blip3o_jax.systems.nexus_gen.layout import licence as licence
from blip3o_jax.systems.nexus_gen.layout import parts as parts
from blip3o_jax.systems.nexus_gen.layout import recognises as recognises
from blip3o_jax.systems.nexus_gen.layout import rows_of as rows_of
from blip3o_jax.systems.nexus_gen.layout import stored_as as stored_as
from blip3o_jax.systems.nexus_gen.model import Config as Config
from blip3o_jax.systems.nexus_gen.model import Loss as Loss
from blip3o_jax.systems.nexus_gen.model import NexusGen as NexusGen
from blip3o_jax.systems.nexus_gen.model import batch_spec as batch_spec
from blip3o_jax.systems.nexus_gen.model import build as build
from blip3o_jax.systems.nexus_gen.model import check as check
from blip3o_jax.systems.nexus_gen.model import flops as flops
from blip3o_jax.systems.nexus_gen.prompts import SPECIAL as SPECIAL
from blip3o_jax.systems.nexus_gen.recordings import recorded as recorded
from blip3o_jax.systems.nexus_gen.replay import replay as replay
from blip3o_jax.systems.nexus_gen.samples import sampler as sampler
from blip3o_jax.systems.nexus_gen.save import exported as exported
from blip3o_jax.systems.nexus_gen.save import write_json as write_json
from blip3o_jax.systems.nexus_gen.stages import stages as stages
from blip3o_jax.systems.nexus_gen.tasks import transforms as transforms
from blip3o_jax.systems.nexus_gen.verbs import VERBS as VERBS
from blip3o_jax.systems.nexus_gen.verbs import load as load
