"""The files of launch/: syntax, schemas, and the scripts run with other programs in their place.

The `blip3o` of these tests writes down how it was called and ends as it is told; what the scripts
do with its exit codes and with SIGTERM is theirs. The real one is started by the mesh tests.
"""

import json
import os
from pathlib import Path
import shlex
import signal
import stat
import subprocess
import sys
import time
import tomllib
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SHELL = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
JOBSETS = sorted(LAUNCH.glob("k8s/*.yaml"))
FILES = (*SHELL, *JOBSETS, *LAUNCH.glob("docker/*"))
OWN = [path for path in FILES if path.name not in ("docs.sh", "environment.sh", "test.sh")]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
KUBERNETES = "1.31"  # the first whose podFailurePolicy is stable
CALL = ["--config=a b.py:debug", "--workdir=/w", "--config.steps=3"]

# Notes its calls, a line of JSON each; ends by the codes in order. 9 stays until SIGTERM, then 75.
STUB = """#!/usr/bin/env python3
import json, os, signal, sys, time
here = os.path.dirname(os.path.realpath(__file__))
found = {k: v for k, v in os.environ.items() if k in ("SLURM_PROCID", "SLURM_LOCALID")}
with open(f"{here}/calls", "a") as file:
  file.write(json.dumps([sys.argv[1:], found]) + "\\n")
attempt = sum(json.loads(x)[0] == sys.argv[1:] for x in open(f"{here}/calls"))
signal.signal(signal.SIGTERM, lambda *_: (open(f"{here}/saved", "a").write("x"), os._exit(75)))
code = json.load(open(f"{here}/codes"))[attempt - 1]
if code == 9:
  open(f"{here}/ready", "a").write("x")
  time.sleep(300)
sys.exit(code)
"""
# Starts the command as SLURM does, a task each; SIGTERM goes to all.
SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
pids=()
trap 'kill -TERM "${pids[@]}"' TERM
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!); done
most=0
for pid in "${pids[@]}"; do
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
  wait "$pid"; code=$?
  [ "$code" -gt "$most" ] && most=$code
done
exit "$most"
"""
# Runs what it is asked to run on each host here, twice.
GCLOUD = """#!/usr/bin/env bash
here="$(dirname "$0")"
echo "$*" >>"$here/gcloud-calls"
for word in "$@"; do
  [[ "$word" == --command=* ]] || continue
  for i in 1 2; do (cd "$here/host" && bash -c "${word#--command=}"); done
done
exit 0
"""


class Place:
  """A folder whose programs come first, and what they were called with."""

  def __init__(self, folder: Path):
    self.folder = folder
    others = {"scontrol": '#!/bin/sh\necho "$@" >>"$(dirname "$0")/scontrol-calls"\n'}
    for name, text in ({"blip3o": STUB, "srun": SRUN, "gcloud": GCLOUD} | others).items():
      path = folder / name
      path.write_text(text)
      path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (folder / "host" / "blip3o" / "bin").mkdir(parents=True)
    (folder / "host" / "blip3o" / "bin" / "blip3o").symlink_to(folder / "blip3o")

  def start(self, *words: Any, codes: list[int], **env: str) -> subprocess.Popen[str]:
    (self.folder / "codes").write_text(json.dumps(codes))
    path = f"{self.folder}:{os.environ['PATH']}"
    return subprocess.Popen(
      ["bash", *map(str, words)],
      env=os.environ | {"PATH": path} | env,
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, *words: Any, codes: list[int], **env: str) -> tuple[int, str]:
    process = self.start(*words, codes=codes, **env)
    _, err = process.communicate(timeout=200)
    return process.returncode, err

  def wait_for(self, name: str, count: int) -> None:
    until = time.monotonic() + 200
    path = self.folder / name
    while not path.exists() or len(path.read_text()) < count:
      assert time.monotonic() < until
      time.sleep(0.02)

  @property
  def calls(self) -> list[Any]:
    return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
  return Place(tmp_path)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_each_file_is_short_and_calls_the_one_command(path):
  text = path.read_text()
  assert len(text.splitlines()) < 60
  if path.name not in ("restart.sh", "quickstart.sh"):
    assert "blip3o" in text
    assert "train" in text
    assert "--config=" in text
  assert path.name in (LAUNCH / "README.md").read_text()


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_syntax(path):
  subprocess.run(["bash", "-n", path], check=True)
  found = subprocess.run(
    [SHELLCHECK, "-x", path], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_jobsets_follow_their_schemas(path):
  (jobset,) = yaml.safe_load_all(path.read_text())
  schema = json.loads((ROOT / "tests/data/jobset.schema.json").read_text())
  jsonschema.validate(jobset, schema)
  for each in jobset["spec"]["replicatedJobs"]:
    spec = each["template"]["spec"]
    job = dict(apiVersion="batch/v1", kind="Job", metadata=dict(name="x"), spec=spec)
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    # What the schema does not say: a policy needs Never, an index needs completions, names agree.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]
    (container,) = spec["template"]["spec"]["containers"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    env = {e["name"]: e.get("value") for e in container.get("env", [])}
    if count := env.get("JAX_NUM_PROCESSES"):
      assert int(count) == spec["completions"]
      name = jobset["metadata"]["name"]
      assert env["JAX_COORDINATOR_ADDRESS"] == f"{name}-{each['name']}-0-0.{name}:8482"
    else:
      assert "--coordinator=auto" in container["args"]
      x, y, z = spec["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split(
        "x"
      )
      chips = container["resources"]["limits"]["google.com/tpu"]
      assert int(x) * int(y) * int(z) == chips * spec["completions"]


def test_the_schemas_refuse_what_is_wrong():
  jobset = yaml.safe_load(JOBSETS[0].read_text())
  schema = json.loads((ROOT / "tests/data/jobset.schema.json").read_text())
  jobset["spec"]["failurePolicy"]["maxRestart"] = 3
  with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
    jsonschema.validate(jobset, schema)
  spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
  spec["template"]["spec"]["containers"][0]["arg"] = []
  job = dict(apiVersion="batch/v1", kind="Job", metadata=dict(name="x"), spec=spec)
  with pytest.raises(kubernetes_validate.ValidationError, match="arg"):
    kubernetes_validate.validate(job, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("docker/*")), ids=lambda path: path.name)
def test_images_install_an_extra_and_pass_signals_on(path):
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  lines = path.read_text().splitlines()
  extra = path.suffix[1:]
  assert extra in extras
  assert f'RUN pip install --no-cache-dir ".[{extra}]"' in lines
  assert 'ENTRYPOINT ["tini", "--", "blip3o"]' in lines
  copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
  assert all((ROOT / word).exists() for word in copied)


def test_local_restarts_what_asks_for_it_and_nothing_else(place):
  words = (LAUNCH / "local_multiprocess.sh", 2, *CALL)
  code, err = place.run(*words, codes=[77, 137, 0], PORT="12345")
  assert (code, err.count("starting all 2 processes again")) == (0, 2)
  assert len(place.calls) == 6
  join = ["--coordinator=127.0.0.1:12345", "--processes=2"]
  found = sorted(args for args, _ in place.calls)
  assert found[0] == ["train", *CALL, *join, "--process=0"]
  assert found[3] == ["train", *CALL, *join, "--process=1"]
  for bad in (1, 130):
    (place.folder / "calls").unlink()
    assert place.run(*words, codes=[bad, 0], PORT="12345")[0] == bad
  (place.folder / "calls").unlink()
  code, err = place.run(*words, codes=[76] * 3, RESTARTS="1", PORT="12345")
  assert (code, "RESTARTS=1 are used up" in err) == (76, True)


@pytest.mark.parametrize("script", ["local_multiprocess.sh", "slurm.sbatch"])
def test_sigterm_reaches_every_process_and_starts_nothing_again(place, script):
  words = [LAUNCH / script, *([2] if script.startswith("local") else []), *CALL]
  slurm = dict(SLURM_NTASKS="2", SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(ROOT))
  process = place.start(*words, codes=[9, 9], **slurm)
  place.wait_for("ready", 2)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=200)
  assert (place.folder / "saved").read_text() == "xx"
  assert len(place.calls) == 2
  if script == "slurm.sbatch":
    assert process.returncode == 0
    assert (place.folder / "scontrol-calls").read_text() == "requeue 7\n"
  else:
    assert process.returncode == 75


def test_slurm_starts_a_task_a_process_and_again(place):
  slurm = dict(SLURM_NTASKS="2", SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(ROOT))
  code, err = place.run(LAUNCH / "slurm.sbatch", *CALL, codes=[77] * 2 + [0] * 2, **slurm)
  assert (code, err.count("starting all tasks again")) == (0, 1), err
  args, env = place.calls[0]
  assert args == ["train", *CALL, "--coordinator=auto", "--processes=2"]
  assert env.keys() == {"SLURM_PROCID", "SLURM_LOCALID"}
  (place.folder / "calls").unlink()
  assert place.run(LAUNCH / "slurm.sbatch", *CALL, codes=[1] * 2, **slurm)[0] == 1
  assert not (place.folder / "scontrol-calls").exists()


def test_tpu_vm_runs_the_command_on_every_host_and_again(place):
  env = dict(NAME="pod", ZONE="z", TYPE="v5p-128")
  words = (LAUNCH / "tpu_vm.sh", "train", *CALL)
  code, err = place.run(*words, codes=[77, 137, 0, 0], **env)
  assert (code, err.count("starting all hosts again")) == (0, 1), err
  assert [args for args, _ in place.calls] == [["train", *CALL, "--coordinator=auto"]] * 4
  for codes, expected in ([0, 1], 1), ([77, 1], 1), ([75, 75], 75):
    (place.folder / "calls").unlink()
    assert place.run(*words, codes=codes, **env)[0] == expected
    assert len(place.calls) == 2
  place.run(LAUNCH / "tpu_vm.sh", "create", codes=[], **env)
  last = (place.folder / "gcloud-calls").read_text().splitlines()[-1]
  assert last.startswith("compute tpus tpu-vm create pod --zone=z --accelerator-type=v5p-128 ")
  assert place.run(LAUNCH / "tpu_vm.sh", codes=[], **env)[0] == 2


def test_xpk_is_given_one_command(place):
  env = dict(PROJECT="p", ZONE="z", CLUSTER="c", TYPE="v5p-128", IMAGE="i", SLICES="2")
  process = place.start(LAUNCH / "xpk.sh", "name", *CALL, codes=[], XPK="printf %s\\n", **env)
  out, err = process.communicate(timeout=200)
  assert process.returncode == 0, err
  words = out.splitlines()
  assert words[:2] == ["workload", "create"]
  assert {"--num-slices=2", "--workload=name", "--tpu-type=v5p-128"} <= set(words)
  command = words[-1].removeprefix("--command=")
  assert shlex.split(command) == ["exec", "blip3o", "train", *CALL, "--coordinator=auto"]
