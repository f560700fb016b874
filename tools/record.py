"""Records what PyTorch computes with a checkpoint, for tools/verify.py to hold ours against.

    python tools/record.py --model DIR --output recorded.safetensors [--seed 0]

DIR is a released-layout directory (not a converted one), or a hub id. Writes recorded.safetensors
for the system and, where the model has one, recorded.decoder.safetensors for its pixel decoder.
Needs the test extra (pip install ".[test]", Python 3.11) and, in float32, the memory of the largest
network, which is the language model: 4 bytes a parameter. One network is loaded at a time.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys
from typing import Any

from blip3o_jax import cli


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", required=True, metavar="DIR", help="a model, or a hub id")
  parser.add_argument("--output", required=True, type=Path, metavar="FILE")
  parser.add_argument(
    "--part", default="all", choices=("all", "system", "decoder"), help="what is recorded"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the random inputs")
  parser.add_argument(
    "--inputs", action="append", default=[], metavar="FILE", help="a recording to take inputs from"
  )
  parser.add_argument(
    "--allowed", type=int, default=0, help="answers take ids below this one (0: below the special)"
  )
  options = parser.parse_args(argv)
  try:
    return cli.guarded("record", lambda: _record(options), RuntimeError)
  except ImportError as error:
    print(
      f'record: {error}; recording needs the test extra: pip install ".[test]"', file=sys.stderr
    )
    return 1


def _record(options: argparse.Namespace) -> int:
  from blip3o_jax.verify import recordings
  from blip3o_jax.verify.torch import record
  from blip3o_jax.weights import hub
  from blip3o_jax.weights import safetensors

  if options.output.suffix != ".safetensors":
    raise ValueError(f"--output {options.output}: expected a name that ends in .safetensors")
  given: dict[str, Any] = {}
  for file in options.inputs:
    tensors = safetensors.Tensors(Path(file))
    recorded = {name: tensors.read(name) for name in tensors}
    given[recordings.kind_of(recorded)] = record.given_inputs(recorded, file)
  directory = hub.local_directory(options.model)
  if options.part != "decoder":
    made = record.record_system(
      directory, seed=options.seed, given=given.get("system"), allowed=options.allowed
    )
    record.save(made, options.output)
    print(f"{options.output}: {len(made)} tensors")
  if options.part == "decoder" or (options.part == "all" and record.has_decoder(directory)):
    made = record.record_decoder(directory, seed=options.seed, given=given.get("decoder"))
    beside = options.output.with_suffix(".decoder.safetensors")
    record.save(made, beside)
    print(f"{beside}: {len(made)} tensors")
  return 0


if __name__ == "__main__":
  sys.exit(main())
