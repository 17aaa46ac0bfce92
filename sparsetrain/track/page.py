"""One HTML page about one or several runs, with all that it needs inside."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

from sparsetrain.track import tables
from sparsetrain.track.account import Account, account
from sparsetrain.track.bars import Lane, paired, stacked, timeline
from sparsetrain.track.chart import Axis, Curve, chart, escape, figure
from sparsetrain.track.console import clean
from sparsetrain.track.digest import BYTES, LAYERS, METRICS, STEP, WALL, Digest, digest, layers
from sparsetrain.track.style import CSS, SCRIPT
from sparsetrain.track.thin import KEPT

MOST = 100  # runs that are drawn; the table has all
POINTS = 8000  # stretches of each kind of curve, over all runs
LAYERS_SHOWN = 240  # over all runs
LONGEST = 80  # letters of a name
DETAILS = 400  # rows of the other tables, over all runs
STEPS, SECONDS, SENT = (
    Axis(label="step"),
    Axis(label="seconds of training"),
    Axis(label="bytes sent by rank 0", log=True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """All that a run folder tells. `missing`: what it does not, in words."""

    lane: Lane
    digest: Digest
    account: Account
    layers: Sequence[dict[str, float]]
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the name of the run."""
        return self.lane.name


def gather(folders: Sequence[pathlib.Path]) -> list[Told]:
    """Return what each run folder tells, and never raise for what is in it."""
    kept = min(KEPT, max(10, POINTS // max(1, len(folders))))
    names = _names(folders)
    return [_told(folder, Lane(name=names[slot], slot=slot), kept) for slot, folder in enumerate(folders)]


def page(runs: Sequence[Told]) -> str:
    """Return the page."""
    drawn = runs[:MOST]
    body = [
        _header(runs),
        _section("Comparison", tables.comparison([run.lane for run in runs], [run.digest.figures for run in runs]))
        if len(runs) > 1
        else _section("Figures", tables.tiles(runs[0].digest.figures)),
        _section("Loss", _charts(_losses(drawn))),
        _section("Traffic and time", _charts(_traffic(drawn))),
        _section("Masks", _charts(_masks(drawn)) + _layers(drawn)),
        _section("Faults and alerts", _faults(drawn)),
        _section("Planner", _planner(drawn)),
        _section("Ranks", _ranks(drawn)),
        _missing(runs),
    ]
    title = "sparsetrain: " + ", ".join(run.name for run in runs[:3]) + (" ..." if len(runs) > 3 else "")
    return _shell(title[:120], "\n".join(body))


def _names(folders: Sequence[pathlib.Path]) -> list[str]:
    """Return the name of each folder, with its parent's where two have one, numbered where that is no help."""
    names = [folder.name for folder in folders]
    names = [f"{f.parent.name}/{n}" if names.count(n) > 1 else n for f, n in zip(folders, names, strict=True)]
    short = [clean(name)[:LONGEST] for name in names]
    return [f"{name} ({slot + 1})" if short.count(name) > 1 else name for slot, name in enumerate(short)]


def _told(folder: pathlib.Path, lane: Lane, kept: int) -> Told:
    found, about = digest(folder / METRICS, kept), account(folder)
    missing = list(about.missing)
    if not found.rows:
        missing.insert(0, f"{METRICS} has no row" if (folder / METRICS).is_file() else f"{METRICS} is not there")
    if found.wrong:
        missing.append(f"{found.wrong} lines of {METRICS} are no rows of numbers, and are left out")
    rows = layers(folder / LAYERS)
    if not rows and "mask/sparsity" in found.figures:
        missing.append(f"{LAYERS} is not there: densities and churn of single layers are not known")
    return Told(lane=lane, digest=found, account=about, layers=rows, missing=tuple(missing))


def _shell(title: str, body: str) -> str:
    """Return the document. Its policy lets nothing be fetched, and no style or script work but our own."""
    own = {name: _hash(text) for name, text in (("style", CSS), ("script", SCRIPT))}
    policy = f"default-src 'none'; style-src {own['style']}; script-src {own['script']}; base-uri 'none'"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{CSS}</style></head>
<body><main>
{body}
</main><script>{SCRIPT}</script></body></html>
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _header(runs: Sequence[Told]) -> str:
    items = []
    for run in runs[:MOST]:
        about, steps = run.account, run.digest.figures.get(STEP)
        where = f"{about.workers} workers" if about.workers else ""
        facts = [f"{steps:.0f} steps" if steps is not None else "", where, about.launcher, _began(about)]
        state = f'<span class="state {escape(about.state)}">{escape(about.state)}</span>'
        cause = f'<br><span class="soft">{escape(about.cause)}</span>' if about.cause else ""
        said = escape(", ".join(fact for fact in facts if fact))
        items.append(f'<li>{tables.swatch(run.lane)} {state} <span class="soft">{said}</span>{cause}</li>')
    more = f'<p class="soft">{len(runs) - MOST} more runs are in the table only.</p>' if len(runs) > MOST else ""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return f'<header><h1>{escape(title)}</h1><ul class="runs">{"".join(items)}</ul>{more}</header>'


def _began(about: Account) -> str:
    """Return when the run began, "" where that is not known."""
    return "" if about.began is None else f"began {tables.moment(about.began)} UTC"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _charts(charts: str) -> str:
    return f'<div class="charts">{charts}</div>'


def _curves(runs: Sequence[Told], x: str, y: str, look: str = "", factor: float = 1.0, said: str = "") -> list[Curve]:
    """Return y against x of every run; `said` comes after the run's name."""
    return [
        Curve(
            name=f"{run.name} {said}".strip(),
            slot=run.lane.slot,
            points=[(a, b * factor) for a, b in run.digest.curve(x, y)],
            look=look,
        )
        for run in runs
    ]


def _per_step(runs: Sequence[Told], key: str) -> list[Curve]:
    """Return the mean a step of a counter: with local steps, single windows have nothing or a burst."""
    return [
        dataclasses.replace(curve, points=[(x, y / x) for x, y in curve.points if x > 0])
        for curve in _curves(runs, STEP, key)
    ]


def _losses(runs: Sequence[Told]) -> str:
    loss, found = Axis(label="nats; dots: validation"), ""
    for key, title, x, axis in (
        ("loss-step", "Loss against step", STEP, STEPS),
        ("loss-wall", "Loss against time", WALL, SECONDS),
        ("loss-bytes", "Loss against bytes", BYTES, SENT),
    ):
        curves = _curves(runs, x, "train/loss", "faint", said="training")
        found += chart(key, title, [*curves, *_curves(runs, x, "eval/loss", "dots", said="validation")], axis, loss)
    return found


def _traffic(runs: Sequence[Told]) -> str:
    sent = [
        *_per_step(runs, "comm/gradient_bytes"),
        *_curves(runs, STEP, "comm/dense_bytes_per_step", "second", said="dense would be"),
    ]
    total = [
        *_curves(runs, STEP, "comm/gradient_bytes", factor=1e-6, said="gradients"),
        *_curves(runs, STEP, "comm/mask_bytes", "second", factor=1e-6, said="masks"),
    ]
    bars = [(run.lane, run.digest.parts) for run in runs[:40]]
    return (
        chart("sent", "Gradient sent a step, mean so far", sent, STEPS, Axis(label="bytes; dotted: dense", log=True))
        + chart("total", "Sent so far", total, STEPS, Axis(label="MB; dotted: masks", log=True))
        + chart("step-time", "Time of a step", _curves(runs, STEP, "time/step_s", factor=1e3), STEPS, Axis(label="ms"))
        + stacked("time", "Where the time of a step goes (means)", bars)
    )


def _masks(runs: Sequence[Told]) -> str:
    share = Axis(label="share", zero=True)
    return (
        chart("sparsity", "Sparsity of masked weights", _curves(runs, STEP, "mask/sparsity"), STEPS, share)
        + chart("churn", "Mask churn at an update", _curves(runs, STEP, "mask/churn", "dots"), STEPS, share)
        + chart("density", "Density of the exchange", _curves(runs, STEP, "grad/density"), STEPS, share)
        + chart(
            "residual", "Residual of rank 0", _curves(runs, STEP, "grad/residual_norm"), STEPS, Axis(label="2-norm")
        )
    )


def _layers(runs: Sequence[Told]) -> str:
    known = [run for run in runs if run.layers]
    most, found = max(4, LAYERS_SHOWN // max(1, len(known))), ""
    for run in known[: LAYERS_SHOWN // 4]:
        table, count = tables.layers(run.lane, run.layers, most)
        more = f'<p class="soft">{count - most} more layers are in {LAYERS}.</p>' if count > most else ""
        found += f"<p>{tables.swatch(run.lane)}</p>{table}{more}" if table else ""
    return f'<div class="charts">{figure("layers", "Layers", found or NONE, "density and churn", wide=True)}</div>'


NONE = '<p class="none">not recorded</p>'


def _faults(runs: Sequence[Told]) -> str:
    line = timeline("faults", "What befell the runs", [(run.lane, run.account) for run in runs[:40]])
    table = tables.events([(run.lane, run.account.events) for run in runs], max(5, DETAILS // len(runs)))
    return _charts(line) + table


def _planner(runs: Sequence[Told]) -> str:
    found = ""
    for run in [run for run in runs if run.account.decisions][:8]:
        last = run.account.decisions[-1]
        count = len(run.account.decisions)
        said = f"before exchange {last.exchange}" + (f", the last of {count} decisions" if count > 1 else "")
        bars = paired(f"planner-{run.lane.slot}", f"{run.name}: {said}", last.candidates[:40])
        took = run.digest.figures.get("time/step_s_steady")
        in_run = "" if took is None else f"; in the run a step took {1e3 * took:.4g} ms, the median of its second half"
        why = f'<p class="soft">{escape(last.why + in_run)}</p>'
        found += bars.replace("</figure>", why + tables.decision(last) + "</figure>")
    none = '<p class="none">no run let the planner choose (exchange.regime: auto)</p>'
    return f'<div class="charts" id="planner">{found or figure("planner-none", "Predicted and measured", none)}</div>'


def _ranks(runs: Sequence[Told]) -> str:
    size = chart("world", "Workers", _curves(runs, STEP, "job/world_size"), STEPS, Axis(label="ranks", zero=True))
    placed = [(run.lane, run.account.ranks) for run in runs]
    table = tables.ranks(placed, max(4, DETAILS // len(runs)))
    return _charts(size) + (table or '<p class="soft">No launch.json says which rank ran where.</p>')


def _missing(runs: Sequence[Told]) -> str:
    items = "".join(
        f"<li>{tables.swatch(run.lane)}: {escape('; '.join(run.missing))}</li>" for run in runs if run.missing
    )
    about = runs[0].account.versions
    foot = f"<footer>{escape(about)}</footer>" if about else ""
    return (_section("What is missing", f'<ul class="missing">{items}</ul>') if items else "") + foot
