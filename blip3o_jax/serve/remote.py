"""Pictures of other servers, where that is switched on: never of a private address.

The host is looked up first, and the connection goes to the address that was checked, so that no
second look-up can give another one. Redirects are checked in the same way.
"""

from collections.abc import Callable
import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult
from urllib.parse import urljoin
from urllib.parse import urlsplit

from blip3o_jax.serve.faults import Refused

REDIRECTS = 3
SECONDS = 10.0  # for one picture, in all
CHUNK = 2**16
_MOVED = (301, 302, 303, 307, 308)
_NAT64 = ipaddress.ip_network("64:ff9b::/32")  # of networks that translate to IPv4, private too
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
  """Whether an address is one of the open internet, however it is written."""
  if isinstance(address, ipaddress.IPv6Address):
    if address.ipv4_mapped is not None:
      return is_public(address.ipv4_mapped)
    if address.sixtofour is not None or address.teredo is not None or address in _NAT64:
      return False
  return address.is_global and not address.is_multicast and not address.is_reserved


def fetch(url: str, param: str, most: int, allowed: Callable[[Address], bool] = is_public) -> bytes:
  """The bytes behind an http or https URL.

  Args:
    param: the field that names it, for errors. most: bytes. allowed: whether an address may be
      connected to.

  Raises:
    Refused: a URL of another kind, a host that may not be asked, no answer, too much of it.
  """
  until = time.monotonic() + SECONDS
  for _ in range(REDIRECTS + 1):
    parts = _parts(url, param)
    connection = _connect(parts, param, until, allowed)
    # Each byte that comes begins the socket's own time anew; this one ends it.
    cut = threading.Timer(max(0.1, until - time.monotonic()), _cut, [connection.sock])
    cut.daemon = True
    cut.start()
    try:
      found = _get(connection, parts, most, until)
      if isinstance(found, bytes):
        return found
      url = urljoin(url, found)
    except (OSError, ValueError, http.client.HTTPException):
      raise Refused(400, f"{param}: the picture could not be fetched", param=param) from None
    finally:
      cut.cancel()
      connection.close()
  raise Refused(400, f"{param}: more than {REDIRECTS} redirects", param=param)


def _parts(url: str, param: str) -> SplitResult:
  try:
    parts = urlsplit(url)
    parts.port  # noqa: B018 raises for what is no number
  except ValueError:
    raise Refused(400, f"{param}: not a URL", param=param) from None
  if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
    raise Refused(400, f"{param}: expected an http or https URL without a name in it", param=param)
  return parts


def _connect(
  parts: SplitResult, param: str, until: float, allowed: Callable[[Address], bool]
) -> http.client.HTTPConnection:
  """A connection to an address of the host that may be connected to."""
  host = parts.hostname or ""
  port = parts.port or (443 if parts.scheme == "https" else 80)
  try:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
  except (OSError, UnicodeError):
    raise Refused(400, f"{param}: the host is not known", param=param) from None
  addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
  # One private address among them is enough to refuse the host.
  if not addresses or not all(allowed(ipaddress.ip_address(a)) for a in addresses):
    raise Refused(400, f"{param}: this host may not be asked", param=param, code="host_refused")
  left = max(0.1, until - time.monotonic())
  connection = http.client.HTTPConnection(host, port, timeout=left)
  sock = socket.socket(found[0][0], socket.SOCK_STREAM)
  try:
    sock.settimeout(left)
    sock.connect(found[0][4])
    if parts.scheme == "https":
      sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
  except OSError:
    sock.close()
    raise Refused(400, f"{param}: the picture could not be fetched", param=param) from None
  connection.sock = sock
  return connection


def _cut(sock: socket.socket) -> None:
  with contextlib.suppress(OSError):
    sock.shutdown(socket.SHUT_RDWR)


def _get(
  connection: http.client.HTTPConnection, parts: SplitResult, most: int, until: float
) -> bytes | str:
  """The body, or where it has moved to; OSError for anything else."""
  path = parts.path or "/"
  connection.request(
    "GET",
    f"{path}?{parts.query}" if parts.query else path,
    headers={"Host": parts.netloc, "Accept": "image/*", "Accept-Encoding": "identity"},
  )
  response = connection.getresponse()
  if response.status in _MOVED:
    return response.headers["Location"] or ""
  if response.status != 200:
    raise OSError("no picture there")
  body = bytearray()
  while chunk := response.read1(CHUNK):
    body += chunk
    if len(body) > most:
      raise OSError("too much")
  if time.monotonic() >= until:  # it was cut
    raise OSError("too slow")
  return bytes(body)
