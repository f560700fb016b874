"""The networks in PyTorch, to record from: an oracle beside the package, never a part of it.

Needs the test extra (torch, transformers, diffusers). Only tools/record.py and tests import it. The
Qwen2.5-VL networks are those of transformers, the UNet, the autoencoder and the schedulers those of
diffusers; the EVA tower and the DiT, which no package has, are written here from their description
(spec 2 and 3). Nothing of our own networks or weight tables is used, so that a mistake there shows.
"""
