"""What `watch` shows: progress, losses, bytes, ranks, what happened last. Only clean text reaches the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

from sparsetrain.track.console import clean, size

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.text import Text

    from sparsetrain.launch.watch import Seen

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE = 48  # characters
BAR = 30
EVENTS = 6
COLORS = {"running": "green", "finished": "green", "pending": "yellow", "failed": "red", "lost": "red", "gone": "red"}
CHROME = 14  # lines of a frame beside ranks


def screen(out: TextIO) -> Console:
    """Return where frames are drawn: in them nothing is markup."""
    from rich.console import Console

    return Console(file=out, highlight=False, markup=False, emoji=False)


def draw(seen: Seen, out: TextIO) -> None:
    """Print one frame: in colour on a terminal, as plain lines elsewhere."""
    found = lines(seen, 10_000)
    if out.isatty():
        screen(out).print(*found, sep="\n")
        return
    encoding = getattr(out, "encoding", None) or "utf-8"
    for line in found:
        print(line.plain.encode(encoding, "replace").decode(encoding), file=out)


def frame(seen: Seen, height: int) -> Group:
    """Return what is shown, in about so many lines."""
    from rich.console import Group

    return Group(*lines(seen, height))


def lines(seen: Seen, height: int) -> list[Text]:
    """Return the lines of a frame, about `height` of them."""
    ranks = _ranks(seen, max(3, height - CHROME))
    return [*_head(seen), *_progress(seen), *_losses(seen), *_bytes(seen), *ranks, *_events(seen), _foot(seen)]


def _line(*parts: tuple[str, str]) -> Text:
    """Return a line of (text, style) with nothing in it that a terminal would obey."""
    from rich.text import Text

    return Text.assemble(*((clean(text), style) for text, style in parts), overflow="fold")


def _head(seen: Seen) -> list[Text]:
    stands = seen.standing
    lines = [_line((stands.name, "bold"), ("  ", ""), (stands.state, COLORS.get(stands.state, "")))]
    if stands.cause:
        lines.append(_line((f"  {stands.cause[:300]}", "dim")))
    return lines


def _progress(seen: Seen) -> list[Text]:
    if not seen.rows:
        return [_line(("  no row of metrics yet", "dim"))]
    step, steps = seen.rows[-1]["train/step"], seen.standing.steps
    if not steps:
        return [_line((f"  step {step:.0f}", ""))]
    share = min(1.0, max(0.0, step / steps))
    full = round(BAR * share)
    left = "" if seen.left_s is None else f", {duration(seen.left_s)} left"
    bar = ("━" * full, "green"), ("━" * (BAR - full), "dim")
    return [_line(("  ", ""), *bar, (f"  step {step:.0f} of {steps} ({share:.0%}{left})", ""))]


def _losses(seen: Seen) -> list[Text]:
    lines = []
    for title, key in (("loss", "train/loss"), ("validation", "eval/loss")):
        values = [row[key] for row in seen.rows if key in row]
        if values:
            lines.append(_line((f"  {title:<11}", "dim"), (f"{values[-1]:<10.5g}", ""), (curve(values), "cyan")))
    return lines


def _bytes(seen: Seen) -> list[Text]:
    if not seen.rows:
        return []
    last = seen.rows[-1]
    sent, dense, words = sent_a_step(seen.rows), last.get("comm/dense_bytes_per_step", 0.0), []
    if sent is not None:
        words.append(f"{size(sent)} a step")
    if dense > 0 and sent is not None:
        words.append(f"{abs(1 - sent / dense):.1%} {'less' if sent <= dense else 'more'} than dense ({size(dense)})")
    if "comm/total_bytes" in last:
        words.append(f"{size(last['comm/total_bytes'])} so far")
    lines = [_line(("  all sent   ", "dim"), (", ".join(words), ""))] if words else []
    if "time/step_s" in last:
        parts = [f"{_ms(last['time/step_s'])} ms a step"]
        parts += [f"{part} {_ms(last[key])}" for part, key in PARTS if key in last]
        lines.append(_line(("  time       ", "dim"), (", ".join(parts), "")))
    return lines


def sent_a_step(rows: list[dict[str, Any]]) -> float | None:
    """Return the bytes that rank 0 sent a step over these rows, of all kinds; None where they do not say. With local
    steps one row may have nothing or a burst."""
    counted = [row for row in rows if "comm/total_bytes" in row]
    if not counted:
        return None
    first, last = counted[0], counted[-1]
    steps, sent = last["train/step"] - first["train/step"], last["comm/total_bytes"] - first["comm/total_bytes"]
    if steps <= 0 or sent < 0:
        steps, sent = last["train/step"], last["comm/total_bytes"]
    return sent / steps if steps > 0 and sent >= 0 else None


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


PARTS = (("compute", "time/forward_backward_s"), ("exchange", "time/exchange_s"), ("optimizer", "time/optimizer_s"))


def _ranks(seen: Seen, most: int) -> list[Text]:
    ranks = sorted(seen.account.ranks, key=lambda each: each.rank)
    lines = []
    for number, each in enumerate(ranks[:most]):
        state = seen.states.get(each.rank, "")
        where = f"{each.host[:40]}  process {each.pid}  "
        head = "  ranks      " if not number else " " * 13
        lines.append(_line((head, "dim"), (f"{each.rank:>4}  {where}", ""), (state, COLORS.get(state, "dim"))))
    if len(ranks) > most:
        known: dict[str, int] = {}
        for each in ranks[most:]:
            known[seen.states.get(each.rank, "")] = known.get(seen.states.get(each.rank, ""), 0) + 1
        told = ", ".join(f"{count} {state}" for state, count in known.items())
        lines.append(_line((f"{'':13}and {len(ranks) - most} more: {told}", "dim")))
    return lines


def _events(seen: Seen) -> list[Text]:
    lines = []
    for number, event in enumerate(seen.account.events[-EVENTS:]):
        head = "  events     " if not number else " " * 13
        said = f"{duration(seen.now - event.at)} ago, step {event.step}: {event.kind}: {event.text[:160]}"
        lines.append(_line((head, "dim"), (said, "red" if event.fault else "yellow")))
    return lines


def _foot(seen: Seen) -> Text:
    ago = seen.standing.seconds_ago
    written = "" if ago is None else f"written {duration(ago)} ago; "
    return _line((f"  {written}{seen.standing.folder}", "dim"))


def curve(values: list[Any]) -> str:
    """Return the last values as a row of blocks, low to high."""
    kept = values[-CURVE:]
    low, high = min(kept), max(kept)
    span = high - low
    if not 0 < span < float("inf"):
        return ""
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int((value - low) / span * len(BLOCKS)))] for value in kept)


def duration(seconds: float) -> str:
    """Return a time span in words of at most two units."""
    whole = int(min(max(0.0, seconds), 1e12))
    for unit, letter, below, under in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {letter} {whole % unit // below} {under}"
    return f"{whole} s"
