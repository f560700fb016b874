"""Trains the toy system in a process of its own, which the tests kill or take the disk from."""

import resource
import sys
import threading
import time

import test_train_loop as runs

from blip3o_jax.train import checkpoint


def fill(workdir: str, saved: int) -> None:
  """Once there are so many checkpoints, no file can grow any more."""
  while len(checkpoint.steps(workdir)) < saved:
    time.sleep(0.005)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


def main(workdir: str, weights: str, steps: int, saved: int, every: int) -> int:
  """Saves every so many steps (0: at the end); the disk is full after `saved` saves (0: never)."""
  if saved:
    threading.Thread(target=fill, args=(workdir, saved), daemon=True).start()
  fields = dict(
    steps=steps, checkpoint=dict(every_steps=every), log=dict(every=1, tensorboard=False)
  )
  try:
    done = runs._run(workdir, weights, **fields)
  except (ValueError, OSError) as error:
    sys.stderr.write(f"faults: {error}\n")
    return 1
  sys.stdout.write(f"finished at {done.step}, began at {done.first}\n")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
