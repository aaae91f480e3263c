"""Put on the path of a process and of all its children: no socket of theirs leaves this machine,
and each that tries is written down.
"""

import os
import sys
from pathlib import Path

LOG = Path(os.environ["WSI_TEST_SOCKET_LOG"])
LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::")


def note(line: str) -> None:
    """One line in the log, whoever else writes to it."""
    with LOG.open("a") as stream:
        stream.write(f"{line}\n")


def refuse_outside(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: raises OSError for what would go to another machine."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) and address else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    else:
        return
    name = host.decode() if isinstance(host, bytes) else host
    if isinstance(name, str) and name and not name.startswith(LOOPBACK):
        note(f"tried {event} {name} by {' '.join(sys.argv)[:80]}")
        raise OSError(101, f"no network in this test: {name}")


sys.addaudithook(refuse_outside)
note(f"guarded {os.getpid()}")
