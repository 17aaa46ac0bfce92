"""Several hosts on one machine: a network namespace each, joined by a bridge, with links as slow as wanted.

They share processors, memory, files and the host name; only their networks are apart, so the time that a collective
spends on the wire is that of a real network of this rate, while the time that it computes is that of one machine.
The hosts reach each other and nothing else, and the machine's own network sees nothing of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time
import types
from collections.abc import Generator, Mapping, Sequence
from typing import IO, Any

from sparsetrain.bench import links, namespaces
from sparsetrain.bench.namespaces import CommandFailed, command
from sparsetrain.config.rate import parse_rate
from sparsetrain.launch import signals

# Every set of hosts has its own bridge without a way out: the same addresses in two sets, or outside, do not meet.
NETWORK = ipaddress.IPv4Network("10.88.0.0/16")
MOST = 1000  # a bridge has 1024 ports
BRIDGE = "bridge"


class HostsUnavailable(RuntimeError):
    """This machine cannot make the hosts; the text is one line that says what is missing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counters:
    """What one interface has sent and received since it was made.

    A packet is what the kernel hands on: up to 64 KB that a real card would cut to 1500 bytes, and then its headers
    count once, so bytes are up to 4.5 % below those on a wire. The rate limit charges every header.
    """

    sent_bytes: int
    received_bytes: int
    sent_packets: int
    received_packets: int

    def __sub__(self, earlier: Counters) -> Counters:
        """Return what came between an earlier reading and this one."""
        return Counters(
            sent_bytes=self.sent_bytes - earlier.sent_bytes,
            received_bytes=self.received_bytes - earlier.received_bytes,
            sent_packets=self.sent_packets - earlier.sent_packets,
            received_packets=self.received_packets - earlier.received_packets,
        )


class Hosts:
    """`count` hosts that exist inside `with`, each with a link of `rate` both ways and `delay` on its way out.

    `rate` is bits per second as parse_rate reads it, None no limit; `delay` one way, as links.parse_delay reads
    it, so that a round trip takes twice as long. Leaving ends all processes in the hosts and removes everything, also
    after Ctrl-C, SIGTERM and SIGHUP; what a killed process left is removed when the next one enters.
    """

    interface = "eth0"

    def __init__(self, count: int, rate: str | None = None, delay: str | None = None) -> None:
        """Raise ValueError on a wrong number or form; nothing is made yet."""
        if not 1 <= count <= MOST:
            raise ValueError(f"count {count}: want 1 to {MOST} hosts")
        self.count = count
        self._rates = [None if rate is None else parse_rate(rate)] * count
        self._delay_us = None if delay is None else links.parse_delay(delay)
        self._prefix = ""
        self._processes: list[subprocess.Popen[str]] = []
        self._handlers = contextlib.ExitStack()

    @staticmethod
    def missing() -> str | None:
        """Return what this machine lacks for hosts with a rate, None when two could be made; they are gone again."""
        try:
            with Hosts(count=2, rate="1gbit"):
                return None
        except HostsUnavailable as error:
            return str(error)

    def __enter__(self) -> Hosts:
        """Make the hosts. Raises HostsUnavailable, and leaves nothing then."""
        if self._prefix:
            raise RuntimeError("these hosts exist already")
        if os.geteuid() != 0:
            raise HostsUnavailable("network namespaces need root")
        for tool in ("ip", "tc"):
            if shutil.which(tool) is None:
                raise HostsUnavailable(f"the command `{tool}` is missing (package iproute2)")
        self._handlers.enter_context(_raising())
        try:
            with _later():  # a half-started command would go on making what is being removed
                namespaces.sweep()
                self._prefix = namespaces.prefix()
                self._make()
        except CommandFailed as error:
            self.close()
            raise HostsUnavailable(f"the system refuses {error}") from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """End the processes in the hosts and remove the hosts; a second call does nothing."""
        try:
            with _later():
                if self._prefix:
                    mine = [name for name in namespaces.names() if name.startswith(f"{self._prefix}h")]
                    namespaces.remove(mine, self._processes)
                self._prefix = ""
                self._processes.clear()
        finally:
            self._handlers.close()

    def address(self, host: int) -> str:
        """Return the IPv4 address of a host."""
        self._name(host)
        return str(NETWORK[host + 1])

    def counters(self, host: int) -> Counters:
        """Return what the host's interface has sent and received so far."""
        shown = command("ip", "-j", "-s", "-n", self._name(host), "link", "show", "dev", self.interface)
        sent, received = json.loads(shown)[0]["stats64"]["tx"], json.loads(shown)[0]["stats64"]["rx"]
        return Counters(
            sent_bytes=sent["bytes"],
            received_bytes=received["bytes"],
            sent_packets=sent["packets"],
            received_packets=received["packets"],
        )

    def reshape(self, rate: str, host: int | None = None) -> None:
        """Give all links, or that of `host`, another rate, as parse_rate reads it, while programs go on.

        Delays stay.
        Packets that wait in a queue are lost, as on a link that fails for a moment; TCP sends them again.
        """
        wanted = parse_rate(rate)
        self._name(0 if host is None else host)
        for each in range(self.count) if host is None else [host]:
            for name, interface, delay in self._ends(each):
                if self._rates[each] is not None or delay is not None:
                    links.unshape(name, interface)
                links.shape(name, interface, wanted, delay)
            self._rates[each] = wanted

    def cut(self, host: int) -> None:
        """Take a host from the network, as if its cable were pulled; its programs go on."""
        command("ip", "-n", self._name(host), "link", "set", self.interface, "down")

    def mend(self, host: int) -> None:
        """Put a host that was cut back on the network, and return when packets pass."""
        links.bring_up(self._name(host), self.interface)
        links.wait_until_up(self._name(host), self.interface)

    def lose(self, host: int, percent: int, source: int | None = None) -> None:
        """Let a host lose this share of the packets that come to it, from the host `source` alone where it is given, at
        random; 0 loses none any more. What was said before counts no more.

        Raises HostsUnavailable where this machine's nftables cannot do it.
        """
        name, sender = self._name(host), None if source is None else self.address(source)
        try:
            links.lose(name, self.interface, percent, sender)
        except (CommandFailed, FileNotFoundError) as error:
            raise HostsUnavailable(f"packets cannot be lost: {error}") from error

    def inside(self, host: int) -> set[int]:
        """Return the ids of the processes in a host."""
        return namespaces.inside([self._name(host)])

    def path(self, host: int) -> pathlib.Path:
        """Return the file that stands for a host's network, as nsenter wants it."""
        return namespaces.FOLDER / self._name(host)

    def kill(self, host: int) -> None:
        """End all programs in a host at once, as if its power were gone; the network stays."""
        deadline = time.monotonic() + namespaces.GRACE_S
        while (found := self.inside(host)) and time.monotonic() < deadline:  # some may just be starting others
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def start(
        self,
        host: int,
        program: Sequence[str],
        env: Mapping[str, str] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program inside a host and return its process; its id is the program's own.

        `env` is the whole environment, None this process's; `stdout` and `stderr` are those of subprocess.Popen, and
        pipes carry text. Gloo finds its peers only when GLOO_SOCKET_IFNAME is `interface`.
        """
        process = subprocess.Popen(
            ["ip", "netns", "exec", self._name(host), *program],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,  # Ctrl-C comes to this process alone, which then ends them in order
        )
        self._processes.append(process)
        return process

    def _name(self, host: int) -> str:
        if not self._prefix:
            raise RuntimeError("hosts exist only inside `with`")
        if not 0 <= host < self.count:
            raise IndexError(f"host {host} of {self.count}")
        return f"{self._prefix}h{host}"

    def _ends(self, host: int) -> tuple[tuple[str, str, int | None], tuple[str, str, int | None]]:
        """Return namespace, interface and delay of both ends of a host's cable."""
        return (self._name(host), self.interface, self._delay_us), (f"{self._prefix}hub", f"port{host}", None)

    def _make(self) -> None:
        hub = f"{self._prefix}hub"
        command("ip", "netns", "add", hub)
        command("ip", "-n", hub, "link", "add", BRIDGE, "type", "bridge")
        links.quiet(hub, BRIDGE)
        links.bring_up(hub, BRIDGE)
        for host in range(self.count):
            name, port = self._name(host), f"port{host}"
            command("ip", "netns", "add", name)
            links.bring_up(name, "lo")
            links.connect(name, self.interface, f"{self.address(host)}/{NETWORK.prefixlen}", hub, BRIDGE, port)
            for end, interface, delay in self._ends(host):
                links.shape(end, interface, self._rates[host], delay)
        links.bring_up(hub, "lo")
        for host in range(self.count):
            links.wait_until_up(self._name(host), self.interface)
            links.wait_until_up(hub, f"port{host}")


@contextlib.contextmanager
def _raising() -> Generator[None]:
    """Let SIGTERM and SIGHUP raise Stopped where they would end this process on the spot; in the main thread only."""
    with signals.kept():
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) == signal.SIG_DFL:
                    signal.signal(number, _stop)
        yield


@contextlib.contextmanager
def _later() -> Generator[None]:
    """Hold back signals that ask this process to end, and deliver the first one afterwards; in the main thread only."""
    held: list[int] = []
    try:
        with signals.kept():
            if threading.current_thread() is threading.main_thread():
                for number in signals.SIGNALS:
                    if signal.getsignal(number) != signal.SIG_IGN:
                        signal.signal(number, lambda number, frame: held.append(number))
            yield
    finally:
        if held:
            signal.raise_signal(held[0])


def _stop(number: int, frame: types.FrameType | None) -> None:
    raise signals.Stopped(signal.Signals(number).name)
