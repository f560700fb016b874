"""One guided picture of a small model on two devices of a CPU is that of one device."""

import halves_worker
import simulated


def test_one_picture_on_two_devices():
  seen = simulated.finish(simulated.start(halves_worker.__file__, 2))
  assert seen.pop("devices") == 2
  assert seen.pop("latents") < 1e-5
  assert seen.pop("features") < 1e-5
  assert seen == {
    "compiled": 0,  # beyond what was compiled for it, watched or not
    "watched": True,
    "threads": True,
    "homes": {
      "kept": True,
      "devices": 2,
      "others": 1,
      "several": True,
      "unguided": True,
      "SMALL": True,
      "count": True,
    },
    "collectives": ["all-gather"],  # the two rows meet once a step
  }
