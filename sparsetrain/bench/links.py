"""Links between network namespaces: a virtual cable into a bridge, with a rate and a delay of one's choice.

A token bucket (tc tbf) stands at both ends of each cable, so a host neither sends nor receives faster than the rate.
"""

from __future__ import annotations

import re
import shutil
import time

from sparsetrain.bench.namespaces import CommandFailed, command

SMALLEST_BURST = 4 * 1024  # more than two full packets
BURST_S = 0.6e-3
LARGEST_PACKET = 64 * 1024
QUEUE = "50ms"
READY_S = 10.0


def parse_delay(text: str) -> int:
    """Return microseconds of "5ms" and the like. Raises ValueError."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})(us|ms)", text)
    if found:
        return int(found[1]) * (1000 if found[2] == "ms" else 1)
    raise ValueError(f"delay {text!r}: want a whole number with us or ms, such as 5ms")


def bring_up(namespace: str, interface: str) -> None:
    """Switch an interface of a namespace on."""
    command("ip", "-n", namespace, "link", "set", interface, "up")


def connect(host: str, interface: str, address: str, hub: str, bridge: str, port: str) -> None:
    """Lay a cable from `interface` of namespace `host`, which gets `address` (with prefix length), to the bridge."""
    command("ip", "-n", host, "link", "add", interface, "type", "veth", "peer", "name", port, "netns", hub)
    command("ip", "-n", host, "address", "add", address, "dev", interface)
    command("ip", "-n", hub, "link", "set", port, "master", bridge)
    quiet(host, interface)
    quiet(hub, port)
    bring_up(hub, port)
    bring_up(host, interface)


def quiet(namespace: str, interface: str) -> None:
    """Give the interface no IPv6 address of its own: its announcements would be counted with the measured bytes."""
    try:
        command("ip", "-n", namespace, "link", "set", interface, "addrgenmode", "none")
    except CommandFailed:
        if "inet6" in command("ip", "-n", namespace, "address", "show", "dev", "lo"):
            raise  # else this kernel has no IPv6, and nothing to switch off


def shape(namespace: str, interface: str, rate: int | None, delay_us: int | None) -> None:
    """Let `interface` send no faster than `rate` bits per second, and each packet `delay_us` later; None: no limit."""
    qdisc = ("tc", "-n", namespace, "qdisc", "add", "dev", interface)
    parent: tuple[str, ...] = ("root",)
    if delay_us is not None:
        # The limit counts packets: it must hold what is under way during the delay, or the queue drops it.
        limit = max(1000, round((rate or 10**10) * delay_us * 2e-6 / (8 * 1500)))
        command(*qdisc, "root", "handle", "1:", "netem", "delay", f"{delay_us}us", "limit", str(limit))
        parent = ("parent", "1:1")
    if rate is not None:
        # The bucket has to last until the kernel's timer and a busy processor come back, or the line idles: buckets of
        # 0.1, 0.3 and 0.6 ms gave TCP 57, 85 and 95 % of 1 Gbit/s as payload (headers take the rest), 1.2 ms no more.
        # A larger one lets short messages pass as if there were no limit. From 1 Gbit/s on it also holds a whole 64 KB
        # packet, which otherwise costs processor time to be cut to size.
        burst = max(SMALLEST_BURST, round(rate / 8 * BURST_S))
        whole_packets(namespace, interface, burst)
        # The queue is for several senders that meet at one receiver; 50 ms of it do not drop what TCP has under way.
        command(*qdisc, *parent, "tbf", "rate", f"{rate}bit", "burst", str(burst), "latency", QUEUE)


def unshape(namespace: str, interface: str) -> None:
    """Take rate and delay from an interface that has one of them."""
    command("tc", "-n", namespace, "qdisc", "del", "dev", interface, "root")


def lose(namespace: str, interface: str, percent: int, sender: str | None = None) -> None:
    """Drop this share of the packets that come in over an interface, of those from the address `sender` where it is
    given; 0 drops none. Raises ValueError, CommandFailed, FileNotFoundError without nft."""
    if not 0 <= percent <= 100:
        raise ValueError(f"percent {percent}: want 0 to 100")
    if shutil.which("nft") is None:
        raise FileNotFoundError("the command `nft` is missing (package nftables)")
    nft, table = ("ip", "netns", "exec", namespace, "nft"), ("netdev", "lossy")
    command(*nft, "add", "table", *table)
    command(*nft, "delete", "table", *table)
    if percent:
        which = [] if sender is None else ["ip", "saddr", sender]
        if percent < 100:
            which += ["numgen", "random", "mod", "100", "<", str(percent)]
        hook = f"{{ type filter hook ingress device {interface} priority 0; }}"
        command(*nft, "add", "table", *table)
        command(*nft, "add", "chain", *table, "in", hook)
        command(*nft, "add", "rule", *table, "in", *which, "drop")


def whole_packets(namespace: str, interface: str, burst: int) -> None:
    """Let TCP hand over packets that fit into the bucket: cutting larger ones took a third of the processors' time."""
    size = str(min(burst, LARGEST_PACKET))
    command("ip", "-n", namespace, "link", "set", interface, "gso_max_size", size)


def wait_until_up(namespace: str, interface: str) -> None:
    """Return when the kernel passes packets: it notes a new cable later, and a first packet lost costs a second."""
    deadline = time.monotonic() + READY_S
    while "state UP" not in command("ip", "-n", namespace, "link", "show", "dev", interface):
        if time.monotonic() > deadline:
            raise CommandFailed(f"{interface} in {namespace} did not come up within {READY_S:.0f} s")
        time.sleep(0.01)
