"""How a page looks and what it does: its only style sheet and its only script, both inside the page."""

# ruff: noqa: E501

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #17181a; --soft: #5c6066; --line: #dfdfda;
  --faint: #ececE8; --good: #0a7d43; --bad: #c02f2f;
  --c0: #2a78d6; --c1: #e07b00; --c2: #159a6c; --c3: #c43d6b; --c4: #6a55c9; --c5: #8a6d00; --c6: #0094a8; --c7: #7d7f85; }
@media (prefers-color-scheme: dark) { :root { --page: #121314; --card: #1b1c1e; --ink: #ececea; --soft: #a2a6ac;
  --line: #34363a; --faint: #27292c; --good: #3ec284; --bad: #ff7b72;
  --c0: #5b9df0; --c1: #f09a3e; --c2: #3cbf90; --c3: #ec7da3; --c4: #a595f5; --c5: #d3b13c; --c6: #41c3d4; --c7: #9b9ea5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.45rem; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 1.05rem; margin: 32px 0 10px; }
p { margin: 6px 0; } .soft { color: var(--soft); } small { color: var(--soft); font-weight: 400; }
.runs { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 14px 0 0; padding: 0; list-style: none; }
.runs li { overflow-wrap: anywhere; }
.state { color: var(--soft); } .state.finished { color: var(--good); } .state.failed, .state.lost { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 150px), 1fr)); gap: 10px; margin: 0; }
.tiles div, figure, .box { background: var(--card); border: 1px solid var(--line); border-radius: 8px; min-width: 0; }
.tiles div { padding: 9px 12px; } .tiles dt { color: var(--soft); font-size: 0.8rem; line-height: 1.3; }
.tiles dd { margin: 2px 0 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 12px; }
figure { margin: 0; padding: 10px 10px 6px; position: relative; } figcaption { font-weight: 600; margin: 0 2px 6px; }
figure .box { border-radius: 6px; margin: 8px 0; } figure.wide { grid-column: 1 / -1; }
figure .none { color: var(--soft); padding: 34px 0 40px; text-align: center; }
svg { display: block; width: 100%; height: auto; } svg.bars { max-width: 460px; } svg.plot { touch-action: pan-y; }
svg text { fill: var(--soft); font-size: 11px; } text.y, text.end { text-anchor: end; } text.x, text.label { text-anchor: middle; }
text.first { text-anchor: start; } text.lane { fill: var(--ink); font-size: 12px; } text.lane.end { fill: var(--soft); }
text.small { font-size: 10px; }
.grid { stroke: var(--faint); } .axis, .tick { stroke: var(--line); fill: none; }
.plot g path, .spark path { fill: none; stroke: var(--c); stroke-width: 1.7; stroke-linejoin: round; }
.plot g circle { fill: var(--c); } .plot .faint path { stroke-width: 1; opacity: 0.45; } .plot .second path { stroke-dasharray: 2 3; }
.d1 path, path.d1 { stroke-dasharray: 7 3; } .d2 path, path.d2 { stroke-dasharray: 3 2; }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); } .s3 { --c: var(--c3); }
.s4 { --c: var(--c4); } .s5 { --c: var(--c5); } .s6 { --c: var(--c6); } .s7 { --c: var(--c7); }
.swatch { display: inline-block; width: 16px; height: 0; border-top: 3px solid var(--c); vertical-align: middle; margin-right: 7px; }
.swatch.d1 { border-top-style: dashed; } .swatch.d2 { border-top-style: dotted; }
.p0 { --c: var(--c0); } .p1 { --c: var(--c1); } .p2 { --c: var(--c2); } .p3 { --c: var(--c4); } .p4 { --c: var(--c7); }
rect { fill: var(--c); } rect.predicted { fill: none; stroke: var(--c0); } rect.measured { --c: var(--c0); }
rect.fault { --c: var(--bad); } path.alert { fill: var(--c5); } path.run { stroke: var(--c); stroke-width: 3; opacity: 0.55; }
.keys { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 0.8rem; color: var(--soft); }
.key::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 2px; background: var(--c);
  margin-right: 5px; } .key.predicted::before { background: none; border: 1px solid var(--c0); }
.key.measured { --c: var(--c0); } .key.fault { --c: var(--bad); } .key.alert { --c: var(--c5); }
.box { overflow-x: auto; } .charts + .box, .charts + .charts, .box + p, p + .box { margin-top: 12px; } table { border-collapse: collapse; width: 100%; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 11px; text-align: right; white-space: nowrap; border-top: 1px solid var(--faint); }
td.text, th.text { text-align: left; } td.long { white-space: normal; min-width: 240px; overflow-wrap: anywhere; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; vertical-align: bottom; }
thead th.tall { white-space: normal; min-width: 116px; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
td:first-child { max-width: 46vw; min-width: 104px; white-space: normal; overflow-wrap: anywhere; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
th[aria-sort="ascending"] button::after { content: " \\2191"; } th[aria-sort="descending"] button::after { content: " \\2193"; }
td .spark { width: 120px; height: 24px; display: inline-block; vertical-align: middle; }
.readout { position: absolute; top: 10px; right: 12px; font-size: 0.78rem; color: var(--soft); background: var(--card);
  padding: 0 4px; font-variant-numeric: tabular-nums; pointer-events: none; max-width: 80%; overflow-wrap: anywhere; }
circle.here { fill: none; stroke: var(--ink); stroke-width: 1.5; }
ul.missing { margin: 0; padding-left: 18px; overflow-wrap: anywhere; } footer { margin-top: 36px; color: var(--soft); font-size: 0.8rem; }
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild?.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending", body = table.tBodies[0];
    const key = (row) => { const cell = row.cells[column]; return "v" in cell.dataset ? cell.dataset.v : cell.textContent; };
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return up ? order : -order;
    });
    for (const each of heads) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  }));
}
const short = (value) => value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5)
  ? String(+value.toPrecision(4)) : value.toExponential(2);
const unscale = (pixel, [low, high, start, stop, log]) => {
  const share = (pixel - start) / (stop - start);
  return log ? 10 ** (Math.log10(low) + share * (Math.log10(high) - Math.log10(low))) : low + share * (high - low);
};
for (const plot of document.querySelectorAll("svg.plot")) {
  const [across, up] = [plot.dataset.x, plot.dataset.y].map((text) => text.split(" ").map(Number));
  let places = null, readout = null, mark = null;
  const begin = () => {
    places = [...plot.querySelectorAll("g")].flatMap((group) => group.querySelector("path").getAttribute("d").slice(1)
      .split("L").map((pair) => [...pair.split(" ").map(Number), group.dataset.name]));
    readout = plot.parentNode.appendChild(document.createElement("div"));
    readout.className = "readout";
    mark = plot.querySelector("g").cloneNode(false);
    mark.innerHTML = '<circle class="here" r="4"/>';
    mark = plot.appendChild(mark.firstChild);
  };
  plot.addEventListener("pointermove", (event) => {
    if (!places) begin();
    const box = plot.getBoundingClientRect(), factor = plot.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * factor, (event.clientY - box.top) * factor];
    const far = (place) => (place[0] - x) ** 2 + ((place[1] - y) ** 2) / 9;
    const [px, py, name] = places.reduce((best, place) => far(place) < far(best) ? place : best);
    mark.setAttribute("cx", px); mark.setAttribute("cy", py);
    readout.textContent = `${name}: ${short(unscale(py, up))} at ${short(unscale(px, across))}`;
  });
  plot.addEventListener("pointerleave", () => {
    if (places) { readout.remove(); mark.remove(); places = null; }
  });
}
"""
