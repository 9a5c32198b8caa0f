"""Run a notebook with nbclient, with no network but loopback: `python run_notebook.py IN OUT`.

Called inside a network namespace of its own, where loopback is still down.
"""

import fcntl
import socket
import struct
import sys

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def main(source: str, target: str) -> int:
    raise_loopback()
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    notebook = nbformat.read(source, as_version=4)
    try:
        NotebookClient(notebook, timeout=1200, kernel_name="python3").execute()
        return 0
    except CellExecutionError:
        return 1
    finally:
        nbformat.write(notebook, target)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
