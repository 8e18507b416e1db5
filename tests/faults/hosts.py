"""Network namespaces, in which processes of this machine have the network of another host."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess

from tests.faults.wire import DOWN, UP

_numbers = itertools.count()
_NOBODY = "02:00:00:00:00:01"
"""A MAC address that no device has. Packets to it are never received, and the sender is not told.
"""


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@functools.cache
def why_not() -> str | None:
    """Return the reason why such hosts can't be made here. None if they can."""
    if shutil.which("ip") is None:
        return "the system has no program ip: install its package iproute2"
    try:
        Host().close()
    except (subprocess.CalledProcessError, StopIteration) as error:
        return (
            f"network namespaces are not permitted here: {getattr(error, 'stderr', error)}".strip()
        )
    return None


class Host:
    """A network namespace that a virtual cable connects to this one."""

    def __init__(self) -> None:
        # The number is unique among the test processes on this machine.
        number = os.getpid() % 60000 * 4 + next(_numbers) % 4
        self.name = f"fl{number:x}"
        self.near, self.far = f"fn{number:x}", f"ff{number:x}"
        network = (
            f"10.{200 + number // 65536 % 50}.{number // 256 % 256}.{number % 256 // 4 * 4}".rsplit(
                ".", 1
            )
        )
        first = int(network[1])
        self.address = f"{network[0]}.{first + 1}"
        """The address under which processes in the namespace reach this host."""
        self.far_address = f"{network[0]}.{first + 2}"
        _ip("netns", "add", self.name)
        try:
            _ip(
                "link",
                "add",
                self.near,
                "type",
                "veth",
                "peer",
                "name",
                self.far,
                "netns",
                self.name,
            )
            _ip("address", "add", f"{self.address}/30", "dev", self.near)
            _ip("link", "set", self.near, "up")
            _ip("-n", self.name, "address", "add", f"{self.far_address}/30", "dev", self.far)
            _ip("-n", self.name, "link", "set", self.far, "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    @property
    def command(self) -> list[str]:
        """The words to put before a command that is to run in the namespace."""
        return ["ip", "netns", "exec", self.name]

    def block(self, *directions: str) -> None:
        """Let no packets through in these directions: from the namespace (up), or into it (down).
        Without directions, let all packets through.
        """
        self._resolve(["-n", self.name], self.address, self.far, blocked=UP in directions)
        self._resolve([], self.far_address, self.near, blocked=DOWN in directions)

    @staticmethod
    def _resolve(where: list[str], address: str, device: str, *, blocked: bool) -> None:
        if blocked:
            _ip(
                *where,
                "neigh",
                "replace",
                address,
                "lladdr",
                _NOBODY,
                "nud",
                "permanent",
                "dev",
                device,
            )
        else:
            subprocess.run(
                ["ip", *where, "neigh", "del", address, "dev", device], capture_output=True
            )

    def close(self) -> None:
        """Remove the namespace. Its processes must have ended."""
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)
        subprocess.run(["ip", "link", "del", self.near], capture_output=True)
