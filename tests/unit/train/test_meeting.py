"""Real processes that meet, miss, refuse and lose each other, without JAX, which takes longer."""

from collections.abc import Callable
from collections.abc import Iterator
import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from blip3o_jax.train import meeting

WORKER, SECONDS = Path(__file__).with_name("meeting_worker.py"), 200
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def address() -> str:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def start(address: str) -> Iterator[Start]:
  """Starts process i of n."""
  made: list[subprocess.Popen[str]] = []

  def begin(process: int, processes: int = 2, **given: Any) -> subprocess.Popen[str]:
    told = json.dumps(dict(address=address, processes=processes, process=process) | given)
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    env = os.environ | {"PYTHONPATH": str(WORKER.parents[3])}
    made.append(subprocess.Popen([sys.executable, WORKER, told], text=True, env=env, **pipes))
    return made[-1]

  yield begin
  for process in made:
    process.kill()
    process.communicate()


def met(*processes: subprocess.Popen[str]) -> None:
  for process in processes:
    assert process.stdout is not None
    assert process.stdout.readline() == "met\n"


def ended(process: subprocess.Popen[str], told: str = "") -> tuple[int, str]:
  """Exit code and last line."""
  assert process.stdin is not None
  assert process.stderr is not None
  process.stdin.write(told)
  process.stdin.flush()
  code = process.wait(SECONDS)
  return code, (process.stderr.read().splitlines() or [""])[-1]


def line_of(process: subprocess.Popen[str], text: str) -> str:
  """The next line of its log that has a text."""
  assert process.stderr is not None
  return next(line for line in process.stderr if text in line)


def test_whoever_comes_first_waits_and_says_for_whom(start, address):
  second = start(1, 3)
  said = line_of(second, "waiting for")
  assert f"waiting for 1 of 3 processes at {address}, process 0 is missing" in said
  first = start(0, 3)
  said = line_of(first, "waiting for 1")
  assert f"waiting for 1 of 3 processes at {address}, process 2 is missing" in said
  third = start(2, 3)
  met(first, second, third)
  for process in (third, first, second):
    assert ended(process, "finish\n")[0] == 0


def test_who_never_came_is_named_on_both_sides(start, address):
  first, third = start(0, 4, wait=4), start(2, 4)
  for process in (first, third):
    code, line = ended(process)
    assert code == meeting.GONE
    assert f"waiting for 2 of 4 processes at {address}, processes 1 and 3 are missing" in line
    assert "gave up after 4 s (config.distributed.join_seconds)" in line


def test_nobody_listens(start, address):
  code, line = ended(start(1, wait=1))
  assert code == meeting.GONE
  assert line.startswith(f"process 1: waiting for 1 of 2 processes at {address}, process 0 is ")
  assert "Connection refused; gave up after 1 s" in line


def test_another_program_at_the_port_is_no_process_of_ours(start, address):
  host, port = address.split(":")
  with socket.create_server((host, int(port))) as server:
    process = start(1, wait=1)
    talk, _ = server.accept()
    talk.sendall(b"\0\0\x12\x04 not of ours\n")
    server.close()
    code, line = ended(process)
  assert (code, "process 0 is missing" in line) == (meeting.GONE, True)
  with socket.create_server((host, int(port))):
    code, line = ended(start(0))
  assert code == 1
  assert line.startswith(f"process 0 cannot listen at port {port}: Address already in use")


def test_differences_are_named_with_values_and_processes(start):
  facts = [{"config.optimizer.lr": lr, "package jax": "1"} for lr in ("0.1", "0.2", "0.1")]
  facts[1]["package jax"] = "2"
  expected = (
    "the processes of this run differ: config.optimizer.lr: 0.1 in processes 0 and 2, 0.2 in "
    "process 1; package jax: 1 in processes 0 and 2, 2 in process 1"
  )
  for process in [start(i, 3, facts=each) for i, each in enumerate(facts)]:
    assert ended(process) == (1, expected)


@pytest.mark.parametrize(
  ("others", "text"),
  [
    ([(1, 4)], "was told of 4 processes, process 0 of 3"),
    ([(1, 3), (1, 3)], "two processes say that they are process 1: "),
  ],
)
def test_numbers_that_do_not_fit_are_refused(start, others, text):
  for process in [start(0, 3), *(start(*each) for each in others)]:
    code, line = ended(process)
    assert (code, text in line) == (1, True), line


def test_one_that_dies_while_others_are_awaited_may_come_again(start):
  first, second = start(0, 3), start(1, 3)
  line_of(first, "process 2 is missing")
  second.kill()
  line_of(first, "processes 1 and 2 are missing")
  again, third = start(1, 3), start(2, 3)
  met(first, again, third)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_partner_takes_the_others_down_with_a_line(start, victim):
  processes = [start(i, 3) for i in range(3)]
  met(*processes)
  pid = processes[victim].pid
  processes[victim].kill()
  for i, process in enumerate(processes):
    if i != victim:
      code, line = ended(process)
      assert code == meeting.GONE
      assert f"process {victim}" in line
      assert victim == 0 or f"pid {pid}) is gone: " in line
      assert f"process {i} leaves with exit code 77: start all processes again" in line


def test_a_partner_that_stands_still_is_taken_for_gone(start):
  processes = [start(i, 3, silent=3) for i in range(3)]
  met(*processes)
  processes[1].send_signal(signal.SIGSTOP)
  for process in (processes[0], processes[2]):
    code, line = ended(process)
    assert code == meeting.GONE
    assert "process 1 (" in line
    assert "is gone: nothing heard for 3 s" in line
  processes[1].send_signal(signal.SIGCONT)
  assert ended(processes[1])[0] == meeting.GONE


def test_an_error_of_one_ends_all_with_its_code_and_line(start):
  processes = [start(i, 3) for i in range(3)]
  met(*processes)
  assert ended(processes[2], "stop\n")[0] == 1
  for process in processes[:2]:
    code, line = ended(process)
    assert code == 1
    assert "process 2 stopped: ValueError: its own shard is missing; process " in line


def test_process_0_outlives_those_that_it_stops(start):
  """With it goes JAX's service, and they would be aborted: 134, which asks for another start."""
  processes = [start(i, 3) for i in range(3)]
  met(*processes)
  assert ended(processes[0], "stop\n")[0] == 1
  for process in processes[1:]:
    # Its connection closes a moment before it is gone; left alone, it would stay for `GRACE`.
    assert process.wait(meeting.GRACE / 2) == 1
    assert "process 0 stopped: ValueError" in ended(process)[1]


def test_one_that_is_done_may_go_before_the_others(start):
  first, second = start(0), start(1)
  met(first, second)
  assert ended(second, "finish\n") == (0, "")
  assert first.poll() is None
  assert ended(first, "finish\n") == (0, "")
