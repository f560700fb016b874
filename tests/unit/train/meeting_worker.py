"""A process that meets others and then stays until it is told to finish, or to stop by an error."""

import json
import sys

from absl import logging

from blip3o_jax.train import meeting

if __name__ == "__main__":
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  given = json.loads(sys.argv[1])
  facts = given.pop("facts", {})
  wait, silent = given.pop("wait", 60), given.pop("silent", 60)
  try:
    partners = meeting.meet(meeting.Place(**given), facts, wait, silent)
  except meeting.Missing as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(meeting.GONE)
  except (ValueError, OSError) as error:
    sys.stderr.write(f"{error}\n")
    sys.exit(1)
  sys.stdout.write("met\n")
  sys.stdout.flush()
  told = sys.stdin.readline().strip()
  if told == "stop":
    partners.stop(1, "ValueError: its own shard is missing")
    sys.exit(1)
  partners.finish()
