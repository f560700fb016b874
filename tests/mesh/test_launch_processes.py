"""The launch scripts with the real command: two processes, of which one is killed."""

import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time
from typing import Any

import blip3o_worker
import pytest
import simulated

from blip3o_jax.train import checkpoint

LAUNCH, STEPS = Path(__file__).parents[2] / "launch", 60
# srun, as far as slurm.sbatch uses it: a task a process, on this machine.
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids[i]=$!; done
most=0
for pid in "${pids[@]}"; do wait "$pid"; code=$?; ((code > most)) && most=$code; done
exit "$most"
"""


def children(words: str) -> dict[int, int]:
  """{number of the process: pid} of the running ones whose command has these words."""
  found = {}
  for entry in Path("/proc").glob("[0-9]*"):
    try:
      command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
      variables = (entry / "environ").read_bytes().decode(errors="replace")
    except OSError:
      continue
    if words in command and command.startswith(sys.executable):
      number = re.search(r"--process=(\d)", command) or re.search(r"SLURM_PROCID=(\d)", variables)
      if number:
        found[int(number[1])] = int(entry.name)
  return found


@pytest.mark.slow
@pytest.mark.parametrize("script", ["local_multiprocess.sh", "slurm.sbatch"])
def test_a_killed_process_is_started_again_with_the_others(script, tmp_path):
  features, workdir = blip3o_worker.cached(tmp_path), tmp_path / "run"
  args = [
    f"--config={blip3o_worker.CONFIG}",
    f"--workdir={workdir}",
    f"--config.steps={STEPS}",
    "--config.batch=4",
    "--config.mesh.replica=2",
    "--config.mesh.fsdp=1",
    "--config.log.every=1",
    "--config.log.tensorboard=False",
    "--config.checkpoint.every_steps=5",
    "--config.model.parts=('denoiser',)",
    "--config.data.features=True",
    f"--config.data.path={features}",
    f"--config.data.records={blip3o_worker.RECORDS}",
  ]
  (tmp_path / "srun").write_text(SRUN)
  (tmp_path / "srun").chmod(0o755)
  env: dict[str, Any] = {
    "PYTHONPATH": str(LAUNCH.parent),
    "JAX_PLATFORMS": "cpu",
    "BLIP3O": f"{sys.executable} -m blip3o_jax.cli",
    "PATH": f"{tmp_path}:{os.environ['PATH']}",
  }
  if script == "slurm.sbatch":
    job = str(os.getpid())
    env |= dict(SLURM_NTASKS="2", SLURM_JOB_ID=job, SLURM_SUBMIT_DIR=str(LAUNCH.parent))
  words = [LAUNCH / script, *(["2"] if script.startswith("local") else []), *args]
  pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  process = subprocess.Popen(["bash", *words], env=os.environ | env, **pipes)
  try:
    until = time.monotonic() + simulated.SECONDS
    while not checkpoint.steps(workdir):
      assert process.poll() is None, process.communicate()[1][-4000:]
      assert time.monotonic() < until
      time.sleep(0.02)
    os.kill(children(str(workdir))[1], signal.SIGKILL)
    _, err = process.communicate(timeout=simulated.SECONDS)
  finally:
    for pid in children(str(workdir)).values():
      os.kill(pid, signal.SIGKILL)
    process.kill()
  assert process.returncode == 0, err[-4000:]
  assert "process 0 leaves with exit code 77: start all processes again" in err
  assert len(re.findall("starting all .* again", err)) == 1
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
