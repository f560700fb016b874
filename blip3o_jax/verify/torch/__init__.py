"""The networks in PyTorch, to record from: an oracle beside the package, never a part of it.

Needs the test extra (torch, transformers, diffusers). Only tools/record.py and tests import it. The
Qwen2.5-VL networks are those of transformers; the UNet, FLUX, the autoencoders and the schedulers
those of diffusers. What no package has is written here from its description: the EVA tower and the
DiT (spec 2 and 3), adapter, merger and losses (Nexus-Gen spec 2, 5, 6 and 9). Nothing of our own
networks or weight tables is used, so that a mistake there shows.
"""
