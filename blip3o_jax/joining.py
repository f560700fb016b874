"""A command that may run as several processes: its options, and how it joins and leaves them."""

import argparse
from collections.abc import Callable
from collections.abc import Mapping
import os
import sys
from typing import Any
from typing import TypeVar

T = TypeVar("T")


def add_options(parser: argparse.ArgumentParser) -> None:
  """Which of several processes this is."""
  parser.add_argument(
    "--coordinator",
    default="",
    help='several processes: "host:port" of the first, or "auto" to ask the cluster '
    "(default: JAX_COORDINATOR_ADDRESS)",
  )
  parser.add_argument(
    "--processes", type=int, default=0, help="how many there are (JAX_NUM_PROCESSES)"
  )
  parser.add_argument("--process", type=int, default=-1, help="which, from 0 (JAX_PROCESS_ID)")


def together(
  verb: str,
  options: argparse.Namespace,
  values: Mapping[str, Any],
  folder: str | os.PathLike[str],
  work: Callable[[Any], T],
) -> tuple[int, T | None]:
  """Runs `work(config)`, a checked `train.run.Run`, when all processes are there.

  Args:
    options: see `add_options`. values: the config. folder: that the processes write to; all must be
      given the same, as all must the config.

  Returns:
    (0, what it gave), or an exit status of docs/training.md after one line, and None.

  Raises:
    What `work` does but for a folder in use; ValueError: a config that does not fit.
  """
  from absl import flags
  from absl import logging

  from blip3o_jax import config
  from blip3o_jax import systems
  from blip3o_jax.train import lock
  from blip3o_jax.train import meeting
  from blip3o_jax.train import processes
  from blip3o_jax.train import run

  flags.FLAGS.mark_as_parsed()  # absl complains of lines before that
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()
  parsed = run.parse(values, systems.SYSTEMS)  # before anybody is waited for
  bounds = parsed.train.distributed
  told = processes.facts(dict(config.fields(values)), os.path.abspath(folder))
  asked = (options.coordinator, options.processes, options.process)
  try:
    with processes.joined(processes.find(*asked, bounds, os.environ), told, bounds):
      return 0, work(parsed)
  except lock.InUseError as error:
    print(f"blip3o {verb}: {error}", file=sys.stderr)
    return os.EX_TEMPFAIL, None
  except meeting.Missing as error:
    print(f"blip3o {verb}: {error}", file=sys.stderr)
    return meeting.GONE, None
