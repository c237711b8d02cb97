"""Writes `docs/speed-beside-peers.md` and its pictures from `result.json`, the figures of one run of the command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.contenders import CONTENDERS, HERE, Contender

RESULT = HERE / "result.json"
DOCS = HERE.parents[1] / "docs"
PAGE = DOCS / "speed-beside-peers.md"
STEPS = 10
RESUMED = 200
GROUPS = {"postgres": "On one PostgreSQL", "sqlite": "On SQLite", "own": "On a server of their own"}
MEASURES = {
    "1": ("One run alone", "ms a step", "ms a step: shorter is faster"),
    "50": ("50 runs at once", "steps a second", "steps a second: longer is faster"),
    "200": ("200 runs at once", "steps a second", "steps a second: longer is faster"),
    "resumed": ("200 runs resumed", "runs a second", "runs a second: longer is faster"),
}
NOT_IN_TIME = "not in time"
_BLOCK = re.compile(r"(?<=<!-- from the figures: )(\w+)( -->\n).*?(?=<!-- until here -->)", re.DOTALL)


def save(result: dict[str, Any]) -> None:
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def write() -> None:
    for path, text in expected().items():
        path.write_text(text, encoding="utf-8")


def expected() -> dict[Path, str]:
    """Return what the page and its pictures must hold."""
    figures = Figures(json.loads(RESULT.read_text(encoding="utf-8")))
    blocks = {"ahead": ahead(figures), "durability": durability(figures), "how": how(figures)}
    blocks |= {group: table(figures, group) for group in GROUPS}
    page = _BLOCK.sub(lambda match: f"{match[1]}{match[2]}\n{blocks[match[1]]}\n\n", PAGE.read_text(encoding="utf-8"))
    pictures = {DOCS / "assets" / f"peers-{measure}.svg": picture(figures, measure) for measure in MEASURES}
    return {PAGE: page, **pictures}


class Figures:
    """The figures of a run as the page shows them."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = result
        self.contenders = [one for one in CONTENDERS if result["contenders"].get(one.key, {}).get("rounds")]

    def value(self, contender: Contender, measure: str) -> float | None:
        """Return the median of the rounds: ms a step, steps or runs a second; None if it was not measured."""
        rounds = self.result["contenders"][contender.key]["rounds"]
        taken = [found[measure] for found in rounds if measure in found]
        if not taken:
            return None
        seconds: float = median(taken)
        if measure == "1":
            return seconds / STEPS * 1e3
        return RESUMED / seconds if measure == "resumed" else int(measure) * STEPS / seconds

    def shown(self, contender: Contender, measure: str) -> str:
        value = self.value(contender, measure)
        if value is None:
            return NOT_IN_TIME if measure != "resumed" or contender.resumes else ""
        return f"{value:.2f}" if value < 10 else f"{value:,.0f}"

    def rounds(self, contender: Contender) -> int:
        return len(self.result["contenders"][contender.key]["rounds"])

    def syncs(self, contender: Contender) -> list[int] | None:
        """Return how many syncs there were between each step and the next; None if that was not traced."""
        found: list[int] | None = self.result["contenders"][contender.key].get("traced", {}).get("between")
        return found

    def waits(self, contender: Contender) -> bool:
        """Return whether each step's record was on the disk before the next step began."""
        return min(self.syncs(contender) or [0]) > 0

    def is_late(self, contender: Contender) -> bool:
        """Return whether a step began before the former one's record was on the disk."""
        return min(self.syncs(contender) or [1]) == 0

    def of(self, group: str) -> list[Contender]:
        return [one for one in self.contenders if group_of(one) == group]


def group_of(contender: Contender) -> str:
    return contender.store if contender.store in GROUPS else "own"


def faster(measure: str, one: float, other: float) -> float:
    """Return how many times `one` is faster than `other`."""
    return other / one if measure == "1" else one / other


def ahead(figures: Figures) -> str:
    """Say where durable was slower, also than inserts by hand, then where it beat the fastest peer that waits for the disk."""
    lines = list(_behind(figures))
    if not lines:
        lines = ["- No peer that has each step on the disk before the next one begins was faster than a `Runner` in this run."]
    lines += _in_front(figures)
    return "\n".join(lines)


def _ours(figures: Figures, group: str) -> list[Contender]:
    return [one for one in figures.of(group) if one.system == "durable"]


def _peers(figures: Figures, group: str) -> list[Contender]:
    return [one for one in figures.of(group) if one.system not in ("durable", "floor")]


def _behind(figures: Figures) -> Iterator[str]:
    for group in ("postgres", "sqlite"):
        for our in _ours(figures, group):
            for measure in MEASURES:
                for peer in [*figures.of(group), *(figures.of("own") if group == "postgres" else ())]:
                    if peer.system == "durable" or (our.queues and not peer.queues):
                        continue
                    mine, theirs = figures.value(our, measure), figures.value(peer, measure)
                    if mine is None or theirs is None or (times := faster(measure, theirs, mine)) < 1.05:
                        continue
                    title, unit, _ = MEASURES[measure]
                    less = ". It starts steps before earlier ones are on the disk" if figures.is_late(peer) else ""
                    yield (
                        f"- **{named(peer)}** is {times:.1f} times as fast as {named(our)} on {store(our)}, {lower(title)}: "
                        f"{figures.shown(peer, measure)} {unit} against {figures.shown(our, measure)}{less}."
                    )


def _in_front(figures: Figures) -> Iterator[str]:
    for group in ("postgres", "sqlite"):
        our = _ours(figures, group)[:1]
        peers = [one for one in _peers(figures, group) if figures.waits(one)]
        for mine in our:
            parts = []
            for measure, (title, unit, _) in MEASURES.items():
                values = [(value, one) for one in peers if (value := figures.value(one, measure)) is not None]
                best = min(values, key=lambda pair: pair[0] if measure == "1" else -pair[0], default=None)
                value = figures.value(mine, measure)
                if best is None or value is None or faster(measure, value, best[0]) < 1.05:
                    continue
                times = faster(measure, value, best[0])
                parts.append(
                    f"{lower(title)} {times:.1f} times as fast ({figures.shown(mine, measure)} {unit}; "
                    f"{named(best[1])} {figures.shown(best[1], measure)})"
                )
            if parts:
                beside = f"- **A `Runner`** on {store(mine)}, against the fastest peer there that waits for the disk"
                yield f"{beside}: {', '.join(parts)}."


def lower(title: str) -> str:
    return title[0].lower() + title[1:]


def named(contender: Contender) -> str:
    if contender.system == "floor":
        return "An insert by hand"
    if contender.system == "durable":
        return "a worker" if "worker" in contender.key else "a `Runner`"
    return f"{contender.system} ({contender.what})" if contender.system == "LangGraph" else contender.system


def store(contender: Contender) -> str:
    return "PostgreSQL" if contender.store == "postgres" else "SQLite"


def table(figures: Figures, group: str) -> str:
    heads = [f"{lower(title)}, {unit}" for title, unit, _ in MEASURES.values()]
    rows = [f"| | {' | '.join(heads)} |", "|---|---|---|---|---|"]
    for one in figures.of(group):
        name = f"*{one.what}*" if one.system == "floor" else f"**{one.system}**, {one.what}"
        note = " †" if figures.rounds(one) == 1 else ""
        rows.append(f"| {name}{note} | {' | '.join(figures.shown(one, measure) for measure in MEASURES)} |")
    return "\n".join(rows)


def durability(figures: Figures) -> str:
    heads = ["on the disk before the next step begins", "syncs between two steps", "pause between two steps"]
    rows = [f"| | {' | '.join(heads)} |", "|---|---|---|---|"]
    for one in figures.contenders:
        syncs = figures.syncs(one)
        if syncs is None:
            continue
        pause = figures.result["contenders"][one.key]["traced"]["gap"] * 1e3
        kept = sum(count > 0 for count in syncs)
        answer = "yes" if kept == len(syncs) else f"no: {kept} of {len(syncs)} times"
        name = f"*{one.what}*" if one.system == "floor" else f"**{one.system}**, {one.what}"
        place = {"postgres": "PostgreSQL", "sqlite": "SQLite"}.get(one.store, "its server")
        rows.append(f"| {name}, {place} | {answer} | {median(syncs):g} | {pause:.1f} ms |")
    return "\n".join(rows)


def how(figures: Figures) -> str:
    result, machine = figures.result, figures.result["machine"]
    late = any(figures.shown(one, measure) == NOT_IN_TIME for one in figures.contenders for measure in MEASURES)
    pinned = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"- **When and where:** {result['date']}, {machine['cores']} cores of an {machine['processor']}, "
        f"{machine['memory_gb']} GB of memory, {machine['system']}, "
        f"a disk that syncs 4 kB in {median(result['sync_seconds']) * 1e3:.2f} ms. "
        f"At the start {machine['load']:.1f} processes wanted the cores.",
        f"- **Versions:** {pinned}; Python {machine['python']}, PostgreSQL {machine['postgres']}, SQLite {machine['sqlite']}.",
        f"- **Rounds:** {max(map(figures.rounds, figures.contenders))}, in which the systems take turns; medians count. "
        "† marks those with one round only, because it took longer than 20 seconds."
        + (f" *{NOT_IN_TIME.capitalize()}* is what was not there after {result['limit']:.0f} seconds." if late else ""),
    ]
    lines += [f"- **Not measured:** {name}, because its environment could not be made." for name in result["missing"]]
    return "\n".join(lines)


def picture(figures: Figures, measure: str) -> str:
    """Draw a bar for each contender; the colours are those of the page's palette."""
    title, _, unit = MEASURES[measure]
    left, width, step = 172, 440, 19
    shown = [(one, value) for group in GROUPS for one in figures.of(group) if (value := figures.value(one, measure)) is not None]
    longest = max(value for _, value in shown)
    room = width - left - 62
    parts: list[str] = []
    y, last = 42, ""
    for one, value in shown:
        if (group := group_of(one)) != last:
            y += 8
            parts.append(f'<text class="head" x="6" y="{y + 11}">{GROUPS[group]}</text>')
            y += step
            last = group
        kind = {"floor": "floor", "durable": "ours"}.get(one.system, "late" if figures.is_late(one) else "peer")
        length = max(value / longest * room, 1)
        parts.append(f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{escape(short(one))}</text>')
        parts.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{length:.1f}" height="14"/>')
        parts.append(f'<text x="{left + length + 5:.1f}" y="{y + 11}">{figures.shown(one, measure)}</text>')
        y += step
    name = f"peers-{measure}"
    described = "; ".join(f"{short(one)} {figures.shown(one, measure)}" for one, _ in shown)
    late = any(figures.is_late(one) for one, _ in shown)
    legend = "Striped: does not wait for the disk." if late else ""
    head = [
        f'<svg class="bars" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 8}" role="img" '
        f'aria-labelledby="{name}">',
        f'<title id="{name}">{title}, {unit}. {escape(described)}.</title>',
        "<style>",
        ".bars text { fill: var(--diagram-text, #14282c); }",
        '.bars text { font: 11.5px system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }',
        ".bars .head { font-weight: 700; }",
        ".bars rect { stroke: var(--diagram-stroke, #0b6670); stroke-width: 1; }",
        ".bars .ours { fill: var(--diagram-stroke, #0b6670); }",
        ".bars .peer { fill: var(--diagram-fill, #e6f2f0); }",
        f".bars .late {{ fill: url(#{name}-late); stroke: var(--diagram-alert-stroke, #a64b00); }}",
        ".bars .floor { fill: none; stroke-dasharray: 3 2; }",
        ".bars .stripe { stroke: var(--diagram-alert-stroke, #a64b00); stroke-width: 2; }",
        "</style>",
        f'<pattern id="{name}-late" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<path class="stripe" d="M0 0V6"/></pattern>',
        f'<text class="head" x="6" y="18">{title}</text>',
        f'<text x="6" y="34">{unit}. {legend}</text>',
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def short(contender: Contender) -> str:
    if contender.system == "floor":
        return "inserts by hand"
    if contender.system == "durable":
        return "durable, worker" if "worker" in contender.key else "durable"
    if contender.system == "LangGraph":
        return "LangGraph, sync" if "sync-" in contender.key and "async" not in contender.key else "LangGraph, default"
    return contender.system
