"""How fast `blip3o serve` is with many clients, and whether it lasts, on the shipped miniature.

    JAX_PLATFORMS=cpu python tests/benchmarks/serve.py --json serve.json

Three rates in pictures a second, measured by turns in one run, the median of the rounds:
`offline_8`, batches of 8 without a server; `one_at_a_time`, one alone as the code was at commit
bb61eaf, taken from git; `clients_16`, 16 clients that ask for one picture after the other. Then 64
clients (`p50` and `p95` in seconds; `lost` counts requests of both that ended in neither 200 nor
429), and a soak with cancellations and malformed bodies, in which the memory is read ten times. The
pictures of the server are compared with those of `generate`.
"""

import argparse
import base64
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from concurrent import futures
import contextlib
import io
import json
import os
from pathlib import Path
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import httpx
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
URL, CHAT = "/v1/images/generations", "/v1/chat/completions"
COLORS = ("red", "yellow", "green", "blue", "purple", "black")
PROMPTS = [f"a {a} circle left of a {b} square" for a in COLORS for b in COLORS if a != b]
COMMIT = "bb61eaf"
OURS = """
import blip3o_jax
model = blip3o_jax.load()
"""
THEIRS = """
from blip3o_jax import shipped
from blip3o_jax.systems import inference
model = inference.load(shipped.directory())
"""
# Draws for some seconds at each line that comes, and says how many pictures a second.
OFFLINE = """
import json, sys, time
batch, prompts = int(sys.argv[1]), json.loads(sys.argv[2])
drawn = 0
def draw():
  global drawn
  texts = [prompts[(drawn + i) % len(prompts)] for i in range(batch)]
  model.generate(texts, list(range(drawn, drawn + batch)))
  drawn += batch
draw()
print(json.dumps(0), flush=True)
for line in sys.stdin:
  begun, before = time.monotonic(), drawn
  while time.monotonic() - begun < float(line):
    draw()
  print(json.dumps((drawn - before) / (time.monotonic() - begun)), flush=True)
"""
SOAKED = ("picture", "cancelled", "chat", "malformed", "stream", "refused")


@contextlib.contextmanager
def offline(checkout: Path, load: str, batch: int) -> Iterator[Callable[[float], float]]:
  """A process that draws without a server: seconds -> pictures a second."""
  command = [sys.executable, "-c", load + OFFLINE, str(batch), json.dumps(PROMPTS)]
  environment = {**os.environ, "PYTHONPATH": str(checkout)}
  with subprocess.Popen(
    command,
    cwd=checkout,
    env=environment,
    text=True,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as process:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()  # it is warm

    def measure(seconds: float) -> float:
      print(seconds, file=process.stdin, flush=True)
      return float(json.loads(process.stdout.readline()))  # type: ignore[union-attr]

    try:
      yield measure
    finally:
      process.stdin.close()


@contextlib.contextmanager
def served() -> Iterator[tuple[str, int]]:
  """The server as its command starts it: its address and its process."""
  command = [sys.executable, "-m", "blip3o_jax.cli", "serve", "--port", "0"]
  with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    while httpx.get(f"{url}/readyz").status_code != 200:
      time.sleep(0.2)
    try:
      yield url, process.pid
    finally:
      process.send_signal(signal.SIGTERM)
      if process.wait(60):
        raise SystemExit(f"the server ended with status {process.returncode}")


def ask(client: httpx.Client, number: int, **more: Any) -> tuple[str, float]:
  """Asks for a picture; how it ended and how long it took."""
  body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, **more}
  begun = time.monotonic()
  try:
    status = str(client.post(URL, json=body).status_code)
  except httpx.HTTPError as error:
    status = type(error).__name__
  return status, time.monotonic() - begun


def crowd(url: str, count: int, seconds: float) -> tuple[float, list[tuple[str, float]]]:
  """Clients that ask one picture after the other: pictures a second, and how each ended."""
  begun = time.monotonic()

  def work(which: int) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    with httpx.Client(base_url=url, timeout=130) as client:
      while time.monotonic() - begun < seconds:
        found.append(ask(client, 100_000 * which + len(found)))
    return found

  with futures.ThreadPoolExecutor(count) as pool:
    ended = [each for found in pool.map(work, range(count)) for each in found]
  drawn = sum(status == "200" for status, _ in ended)
  return drawn / (time.monotonic() - begun), ended


def differences(url: str) -> dict[str, Any]:
  """The server's pictures beside those of `generate`, in the same bucket and in another."""
  import blip3o_jax

  model = blip3o_jax.load()
  out = {}
  for name, batch in (("same_bucket", 4), ("other_bucket", 1)):
    body = {"prompt": PROMPTS[0], "seed": 7, "n": 4}
    data = httpx.post(url + URL, json=body, timeout=130).json()["data"]
    shown = [Image.open(io.BytesIO(base64.b64decode(each["b64_json"]))) for each in data]
    drawn = model.generate(PROMPTS[0], 7, images_per_prompt=4, batch=batch)
    apart = np.abs(
      np.stack([np.asarray(each, np.int32) for each in shown])
      - np.stack([each.pixels.astype(np.int32) for each in drawn])
    )
    out[name] = {"levels": int(apart.max()), "share": float((apart > 0).mean())}
  return out


def memory(process: int) -> float:
  """MiB that a process keeps."""
  lines = Path(f"/proc/{process}/status").read_text().splitlines()
  return int(next(x for x in lines if x.startswith("VmRSS")).split()[1]) / 1024


def soak(url: str, process: int, requests: int) -> dict[str, Any]:
  """Many short requests, some of which leave, some of which are wrong."""
  chance, places = random.Random(0), []
  plan = [(i, SOAKED[chance.randrange(len(SOAKED))], chance.random()) for i in range(requests)]

  def one(client: httpx.Client, number: int, kind: str, share: float) -> str:
    few = {"num_inference_steps": 1 + number % 2, "pixel_steps": 1}
    talk = {"messages": [{"role": "user", "content": "how many circles are there?"}]}
    json_body = {"Content-Type": "application/json"}
    try:
      if kind == "cancelled":
        client.post(URL, json={"prompt": "a red circle"}, timeout=0.01 + share / 5)
      elif kind == "chat":
        return str(client.post(CHAT, json={**talk, "stream": number % 2 == 0}).status_code)
      elif kind == "malformed":
        body = json.dumps({"prompt": "a", "n": 1}).encode()[: int(share * 24)]
        return str(client.post(URL, content=body + b"\xff", headers=json_body).status_code)
      elif kind == "stream":
        body_of = {"prompt": "a", "stream": True, "partial_images": 1, **few}
        with client.stream("POST", URL, json=body_of) as response:
          if share < 0.5:  # it leaves
            return str(response.status_code)
          return str(response.status_code) if response.read() else "empty"
      elif kind == "refused":
        return str(client.post(URL, json={"prompt": "a", "size": "9x9"}).status_code)
      return ask(client, number, **few)[0]
    except httpx.TimeoutException:
      return "left" if kind == "cancelled" else "timeout"

  ended: Counter[str] = Counter()
  with futures.ThreadPoolExecutor(16) as pool, httpx.Client(base_url=url, timeout=130) as client:
    for first in range(0, requests, max(1, requests // 10)):
      part = plan[first : first + max(1, requests // 10)]
      ended.update(pool.map(lambda each: f"{each[1]} {one(client, *each)}", part))
      places.append(round(memory(process), 1))
  waiting = httpx.get(f"{url}/metrics").text
  return {
    "ended": dict(sorted(ended.items())),
    "memory_mib": places,
    "growth_mib": round(places[-1] - places[len(places) // 2], 1),
    "left_behind": [x for x in waiting.splitlines() if x.startswith(("blip3o_wait", "blip3o_run"))],
  }


def measured(options: argparse.Namespace, before: Path) -> dict[str, Any]:
  """All of it; `before` is a checkout of the commit."""
  with served() as (url, process):
    rates: dict[str, list[float]] = {"offline_8": [], "one_at_a_time": [], "clients_16": []}
    with offline(ROOT, OURS, 8) as eight, offline(before, THEIRS, 1) as one:
      ended: list[tuple[str, float]] = []
      crowd(url, 16, 2)
      for _ in range(options.rounds):
        rates["offline_8"].append(eight(options.seconds))
        rates["one_at_a_time"].append(one(options.seconds))
        rate, found = crowd(url, 16, options.seconds)
        rates["clients_16"].append(rate)
        ended += found
    out: dict[str, Any] = {name: round(statistics.median(v), 3) for name, v in rates.items()}
    out["of_offline"] = round(out["clients_16"] / out["offline_8"], 3)
    out["of_one_at_a_time"] = round(out["clients_16"] / out["one_at_a_time"], 3)
    _, many = crowd(url, 64, options.load_seconds)
    took = sorted(seconds for status, seconds in many if status == "200")
    out["lost"] = sum(status not in ("200", "429") for status, _ in (*ended, *many))
    out["clients_64"] = dict(Counter(status for status, _ in many))
    out["p50"] = round(took[len(took) // 2], 3)
    out["p95"] = round(took[int(len(took) * 0.95)], 3)
    out["pictures"] = differences(url)
    if options.soak:
      out["soak"] = soak(url, process, options.soak)
  return {**out, "rounds": {name: [round(v, 3) for v in values] for name, values in rates.items()}}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--json", type=Path, required=True, help="the file that is written")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=15, help="of each rate in a round")
  parser.add_argument("--load-seconds", type=float, default=60, help="of 64 clients")
  parser.add_argument("--soak", type=int, default=5000, help="requests; 0 is none")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    archive = ["git", "-C", str(ROOT), "archive", COMMIT, "blip3o_jax"]
    packed = subprocess.run(archive, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
    out = measured(options, Path(folder))
  out |= {"cores": os.cpu_count(), "load": os.getloadavg()[1]}
  options.json.write_text(json.dumps(out, indent=2) + "\n")
  print(json.dumps(out))
  return 0


if __name__ == "__main__":
  sys.exit(main())
