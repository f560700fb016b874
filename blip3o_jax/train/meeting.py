"""Processes of a run meet before JAX joins them, compare what they were given, and then watch.

JAX waits for a partner in silence and ends by abort, without a Python exception, when one does not
come or dies. So process 0 listens at the coordinator's own address first. When all have come it
stops listening, JAX takes the port over, and the connections stay: one that closes, or that nothing
is heard from, is a partner that is gone. Imports no jax.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import json
import os
import select
import socket
import sys
import threading
import time
from typing import Any

from absl import logging

GONE = 77  # exit code: a partner is gone, so all processes must be started again
EVERY = 10.0  # seconds between two lines about who is missing
GRACE = 10.0  # seconds in which a process may meet the error that stopped another one
MOST = 2**22  # bytes of a message
HELLO = {"process", "processes", "who", "facts"}
SHOWN = 8  # fields that an error names
_met: list["Partners"] = []  # a process meets its partners once


class Missing(Exception):
  """A process did not come in time."""


@dataclasses.dataclass(frozen=True)
class Place:
  """Which process this is.

  Attributes:
    address: "host:port" of process 0. processes: how many. process: this one, from 0.
    devices: of this machine, those that are this process's; () is all.
  """

  address: str
  processes: int
  process: int
  devices: tuple[int, ...] = ()

  @property
  def endpoint(self) -> tuple[str, int]:
    """Host and port; raises ValueError for an address without them."""
    host, _, port = self.address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
      raise ValueError(f"coordinator {self.address!r}: expected HOST:PORT")
    return host.strip("[]"), int(port)


class Line:
  """A connection that carries JSON, a message a line."""

  def __init__(self, connection: socket.socket):
    connection.settimeout(5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    self.connection, self.heard, self.who = connection, time.monotonic(), ""
    self._rest, self._lock = b"", threading.Lock()

  def fileno(self) -> int:
    """For `select`."""
    return self.connection.fileno()

  def send(self, **message: Any) -> None:
    """Sends a message; whether the other side is there is seen when it is listened to."""
    with self._lock, contextlib.suppress(OSError):
      self.connection.sendall(json.dumps(message).encode() + b"\n")

  def receive(self) -> list[dict[str, Any]]:
    """What has come since; raises OSError at the end, or for what is no message."""
    found = self.connection.recv(2**16)
    if not found:
      raise ConnectionError("its connection closed")
    self.heard = time.monotonic()
    *whole, self._rest = (self._rest + found).split(b"\n")
    try:
      messages = [json.loads(each) for each in whole]
    except ValueError:
      raise ConnectionError("what it says is not of this protocol") from None
    if len(self._rest) > MOST or not all(isinstance(each, dict) for each in messages):
      raise ConnectionError("what it says is not of this protocol")
    return messages

  def close(self) -> None:
    """Ends the connection."""
    self.connection.close()


def meet(place: Place, facts: Mapping[str, str], wait: float, silent: float) -> "Partners":
  """Waits until all processes have come with the same facts, and watches them from then on.

  Args:
    facts: {name: what must be equal in all processes}.
    wait: seconds that process 0 waits for the others, and they for process 0.
    silent: seconds without a sign of life after which a process is taken for gone.

  Raises:
    Missing: who did not come; processes that came raise it too.
    ValueError: facts that differ, by name and process; numbers that do not fit together.
    OSError: process 0 cannot listen at its address.
  """
  if place.process == 0:
    lines = _gather(place, dict(facts), wait, silent)
  else:
    lines = {0: _attend(place, dict(facts), wait, silent)}
  _met.append(Partners(place.process, lines, silent))
  return _met[-1]


def stop(status: int, text: str) -> None:
  """`Partners.stop` for whoever this process has met; nothing where it is the only one."""
  for partners in _met:
    partners.stop(status, text)


def differences(facts: Mapping[int, Mapping[str, str]]) -> list[str]:
  """For each name whose values differ over the processes, the values and who has them."""
  out = []
  for name in dict.fromkeys(name for each in facts.values() for name in each):
    holders: dict[str, list[int]] = {}
    for process in sorted(facts):
      holders.setdefault(facts[process].get(name, "absent"), []).append(process)
    if len(holders) > 1:
      said = (f"{_short(value)} in {_processes(who)}" for value, who in holders.items())
      out.append(f"{name}: {', '.join(said)}")
  return out


def _gather(place: Place, facts: dict[str, str], wait: float, silent: float) -> dict[int, Line]:
  """Process 0: connections of all others."""
  came: dict[int, Line] = {}
  told: dict[int, dict[str, str]] = {0: facts}
  new: list[Line] = []
  began = time.monotonic()
  said, shown, beat = began - EVERY + 2, "", began
  with _listen(place) as server, contextlib.ExitStack() as stack:

    def leave() -> None:
      for line in (*new, *came.values()):
        line.close()

    stack.callback(leave)
    while len(came) < place.processes - 1:
      now = time.monotonic()
      text = _waiting(place, [i for i in range(1, place.processes) if i not in came])
      if now - began > wait:
        text = f"{text}; gave up after {wait:.0f} s (config.distributed.join_seconds)"
        _tell(came, missing=text)
        raise Missing(text)
      if now - said >= EVERY or (shown not in ("", text) and now - said >= 1):
        logging.info("%s (%.0f of %.0f s)", text, now - began, wait)
        said, shown = now, text
      if now - beat >= 1:
        _tell(came, waiting=text)
        beat = now
      watched: list[Any] = [server, *new, *came.values()]
      for line in select.select(watched, [], [], 0.2)[0]:
        if line is server:
          new.append(Line(server.accept()[0]))
          continue
        try:
          messages = line.receive()
        except OSError:
          _forget(line, new, came)
          continue
        for message in messages:
          hello = message.get("hello")
          if line in new and isinstance(hello, dict) and hello.keys() >= HELLO:
            new.remove(line)
            _admit(place, line, hello, came, told)
      for line in [each for each in (*new, *came.values()) if now - each.heard > silent]:
        _forget(line, new, came)
    differ = differences(told)
    if differ:
      more = f"; and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
      text = f"the processes of this run differ: {'; '.join(differ[:SHOWN])}{more}"
      _tell(came, refused=text)
      raise ValueError(text)
    stack.pop_all()
  for line in new:
    line.close()
  _tell(came, go=True)  # after the port is free, which JAX listens at next
  return came


def _admit(
  place: Place,
  line: Line,
  hello: Mapping[str, Any],
  came: dict[int, Line],
  told: dict[int, dict[str, str]],
) -> None:
  """Takes a process in that says who it is; raises ValueError, told to all, if that cannot be."""
  index, line.who = int(hello["process"]), str(hello["who"])
  text = ""
  if hello["processes"] != place.processes:
    text = (
      f"process {index} ({line.who}) was told of {hello['processes']} processes, process 0 of "
      f"{place.processes}"
    )
  elif not 0 < index < place.processes:
    text = f"process {index} ({line.who}): expected 1 to {place.processes - 1} beside process 0"
  elif index in came:
    text = f"two processes say that they are process {index}: {came[index].who} and {line.who}"
  if text:
    line.send(refused=text)
    _tell(came, refused=text)
    raise ValueError(text)
  came[index], told[index] = line, hello["facts"]


def _attend(place: Place, facts: dict[str, str], wait: float, silent: float) -> Line:
  """Another process: its connection to process 0, once all have come."""
  hello = dict(process=place.process, processes=place.processes, who=_who(), facts=facts)
  began = time.monotonic()
  said = began - EVERY + 2
  while True:
    line, reason = None, ""
    try:
      line = Line(socket.create_connection(place.endpoint, timeout=5))
      line.send(hello=hello)
      while not reason:
        if not select.select([line], [], [], 1)[0]:
          if time.monotonic() - line.heard > silent:
            reason = f"nothing heard for {silent:.0f} s"
          continue
        for message in line.receive():
          if "go" in message:
            return line
          if "refused" in message:
            raise ValueError(message["refused"])
          if "missing" in message:
            raise Missing(message["missing"])
          if time.monotonic() - said >= EVERY and "waiting" in message:
            logging.info("process %d: %s", place.process, message["waiting"])
            said = time.monotonic()
    except OSError as error:
      reason = error.strerror or str(error)
    if line is not None:
      line.close()
    now = time.monotonic()
    text = f"process {place.process}: {_waiting(place, [0])}: {reason}"
    if now - began > wait:
      raise Missing(f"{text}; gave up after {wait:.0f} s (config.distributed.join_seconds)")
    if now - said >= EVERY:
      logging.info("%s (%.0f of %.0f s)", text, now - began, wait)
      said = now
    time.sleep(0.3)


class Partners:
  """The other processes of a run, watched by a thread: when one is gone, this one leaves.

  Process 0 hears all others and passes on who is gone; they hear process 0.
  """

  def __init__(self, process: int, lines: dict[int, Line], silent: float):
    self.process, self._lines, self._silent = process, lines, silent
    self._done: set[int] = set()
    self._news = threading.Event()
    threading.Thread(target=self._watch, daemon=True, name="partners").start()

  def finish(self) -> None:
    """Tells the others that this process is done, so that it may go."""
    _tell(self._lines, done=True)

  def stop(self, status: int, text: str) -> None:
    """Tells the others that this process stops by an error of its own, with this exit code.

    Where a partner was gone before, which is then the reason of the error, this does not return:
    the thread ends the process. In process 0 it returns when the others have left, at most `GRACE`
    and two seconds later: with it goes JAX's service, and they would be aborted.
    """
    if self._news.wait(3):
      return
    self._done.update(list(self._lines))  # that they leave is no news any more
    said = f"process {self.process} stopped: {_short(text, 400)}"
    _tell(self._lines, stopped=dict(status=status, text=said))
    until = time.monotonic() + GRACE + 2
    while self.process == 0 and self._lines and time.monotonic() < until:
      time.sleep(0.05)

  def _watch(self) -> None:
    beat = 0.0
    for line in self._lines.values():
      line.heard = time.monotonic()
    while True:
      now = time.monotonic()
      if now - beat >= min(5, self._silent / 4):
        _tell(self._lines, beat=True)
        beat = now
      ready = select.select([*self._lines.values()], [], [], min(1, self._silent / 4))[0]
      for index, line in list(self._lines.items()):
        try:
          self._hear(index, line.receive() if line in ready else [])
          # Both clocks, or a process that was itself stopped would take the others for gone.
          if min(time.monotonic(), now + self._silent / 2) - line.heard > self._silent:
            raise TimeoutError(f"nothing heard for {self._silent:.0f} s")
        except OSError as error:
          del self._lines[index]
          line.close()
          if index not in self._done:
            who = f" ({line.who})" if line.who else ""
            self._leave(GONE, f"process {index}{who} is gone: {error.strerror or error}")

  def _hear(self, index: int, messages: list[dict[str, Any]]) -> None:
    for message in messages:
      if "done" in message:
        self._done.add(index)
      if "gone" in message:
        self._leave(GONE, message["gone"])
      if "stopped" in message:
        by = message["stopped"]
        self._leave(by["status"], by["text"])

  def _leave(self, status: int, text: str) -> None:
    """Ends this process, and by process 0 all others; nothing in Python could still end it well."""
    self._news.set()
    if status == GONE:
      _tell(self._lines, gone=text)
      todo = "start all processes again"
    else:
      _tell(self._lines, stopped=dict(status=status, text=text))
      time.sleep(GRACE)  # it may have the same error, and says it better
      todo = "that error must go first" if status == 1 else "its log says why"
    line = f"blip3o train: {text}; process {self.process} leaves with exit code {status}: {todo}\n"
    # Not by the logger, whose lock the main thread may hold.
    with contextlib.suppress(OSError):
      os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
    os._exit(status)


def _listen(place: Place) -> socket.socket:
  """The socket of process 0, at the address that JAX's own service takes over."""
  _, port = place.endpoint
  host = ""
  if bind := os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", ""):
    host, port = Place(bind, 1, 0).endpoint
  try:
    if host in ("", "::") and socket.has_dualstack_ipv6():
      family: Any = socket.AF_INET6
      return socket.create_server(("", port), family=family, dualstack_ipv6=True, backlog=4096)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=4096)
  except OSError as error:
    raise OSError(
      f"process 0 cannot listen at port {port}: {error.strerror or error}; is another process 0 "
      "of this run there, or another program?"
    ) from None


def _forget(line: Line, new: list[Line], came: dict[int, Line]) -> None:
  """Drops a connection of a process that went while the others were awaited; it may come again."""
  line.close()
  if line in new:
    new.remove(line)
  for index in [i for i, each in came.items() if each is line]:
    del came[index]


def _tell(lines: Mapping[int, Line], **message: Any) -> None:
  for line in list(lines.values()):
    line.send(**message)


def _waiting(place: Place, missing: list[int]) -> str:
  be = "is" if len(missing) == 1 else "are"
  return (
    f"waiting for {len(missing)} of {place.processes} processes at {place.address}, "
    f"{_processes(missing)} {be} missing"
  )


def _processes(indices: list[int]) -> str:
  """Numbers in words: "process 1", "processes 0 and 2"."""
  *most, last = map(str, indices if len(indices) <= 16 else [*indices[:15], "more"])
  return f"processes {', '.join(most)} and {last}" if most else f"process {last}"


def _short(text: str, most: int = 120) -> str:
  return text if len(text) <= most else f"{text[: most - 3]}..."


def _who() -> str:
  return f"{socket.gethostname()}, pid {os.getpid()}"
