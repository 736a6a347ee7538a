"""The results for people: tables as text, and one HTML page with its plots in it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib

from sim.study.results import ALL, MEAN, Value

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "swarm"  # equal results are an equal page
matplotlib.rcParams["svg.fonttype"] = "none"

from matplotlib import pyplot as plt  # noqa: E402

WORDS = {
    "auc": "AUC", "accuracy": "accuracy", "f1": "F1", "sensitivity": "sensitivity", "specificity": "specificity",
    "ece": "calibration error", "c_index": "C-index",
}  # fmt: skip
COLORS = {"local": "#888888", "pooled": "#1b7837", "federated": "#2166ac", "swarm": "#d6604d"}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:left}
th{background:#f5f5f5}svg{max-width:100%;height:auto}.note{color:#555}"""

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Columns and rows."""


def cell(value: Value, *, interval: bool = False) -> str:
    """`0.881 ± 0.002`, or why there is no number."""
    if "undefined" in value:
        return f"undefined: {value['undefined']}"
    shown = f"{value['mean']:.3f} ± {value['deviation']:.3f}"
    return f"{shown} ({value['low']:.3f} to {value['high']:.3f})" if interval and "low" in value else shown


def overview(found: Mapping[str, Any]) -> Table:
    """Every arm on all test rows, and the mean over the sites at home."""
    names = list(next(iter(found["measures"].values()))[ALL])
    columns = ["", *(f"{WORDS[name]}, all" for name in names), f"{WORDS[found['main']]}, mean over sites"]
    rows = [
        [arm, *(cell(scopes[ALL][name]) for name in names), cell(scopes[MEAN][found["main"]])]
        for arm, scopes in found["measures"].items()
    ]
    return columns, rows


def by_site(found: Mapping[str, Any], metric: str) -> Table:
    """One metric of every arm at every site, with its interval."""
    scopes = [ALL, MEAN, *(site["name"] for site in found["sites"])]
    arms = found["measures"].values()
    rows = [
        [scope, *(cell(arm[scope][metric], interval=True) if scope in arm else "–" for arm in arms)] for scope in scopes
    ]
    return ["", *found["measures"]], rows


def matrix(found: Mapping[str, Any]) -> Table:
    """Every model on the test rows of every site."""
    sites = [site["name"] for site in found["sites"]]
    return ["model", *sites], [[model, *(cell(at[s]) for s in sites)] for model, at in found["matrix"].items()]


def gains(found: Mapping[str, Any]) -> Table:
    """By how much each site does better at home than its own model."""
    sites = list(next(iter(found["gain"].values()), {}))
    rows = [[site, *(cell(found["gain"][arm][site], interval=True) for arm in found["gain"])] for site in sites]
    return ["", *found["gain"]], rows


def groups(found: Mapping[str, Any]) -> Table:
    """Each subgroup of all test rows."""
    rows = [
        [name, str(group["rows"]), *(cell(one[found["main"]], interval=True) for one in group["arms"].values())]
        for name, group in found["groups"].items()
    ]
    return ["", "rows", *found["measures"]], rows


def unseen(found: Mapping[str, Any]) -> Table:
    """Sites that were left out, one at a time, and judged on all of their rows."""
    arms = [arm for arm in ("local", "pooled", "federated", "swarm") if arm in found["measures"]]
    rows = []
    for site, one in found["unseen"].items():
        known = {name: v["mean"] for name, v in one["models"].items() if "mean" in v}
        best = max(known, key=lambda name: known[name], default="")
        cells = [cell(one["arms"][arm][found["main"]], interval=True) for arm in arms]
        rows.append([site, str(one["rows"]), *cells, f"{best} {known[best]:.3f}" if best else "–"])
    return ["site that never trained", "rows", *arms, "best local model"], rows


def sites(found: Mapping[str, Any]) -> Table:
    """Who has what."""

    def counts(part: Mapping[str, Any]) -> str:
        return f"{part['rows']} ({', '.join(f'{n} of class {c}' for c, n in part['classes'].items())})"

    rows = [
        [site["name"], counts(site["train"]), counts(site["test"]), "yes" if site["trains"] else "no"]
        for site in found["sites"]
    ]
    return ["site", "training rows", "test rows", "trains"], rows


def published(found: Mapping[str, Any]) -> Table:
    """Others' figures beside ours."""
    rows = []
    for one in found["published"]:
        ours = found["measures"].get("swarm", {}).get(one["scope"], {}).get(one["metric"])
        rows.append(
            [
                one["what"],
                WORDS.get(one["metric"], one["metric"]),
                one["value"],
                cell(ours) if ours else "–",
                one["differs"],
            ]
        )
    return ["published", "metric", "there", "swarm here", "on", "what differs"], rows


def markdown(table: Table) -> str:
    """For a README."""
    columns, rows = table
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def page(found: Mapping[str, Any]) -> str:
    """The whole report: one HTML document that asks nobody for anything."""
    settings = found["experiment"]
    policy, scenario = settings["policy"], settings["scenario"]
    main = WORDS[found["main"]]
    names = list(next(iter(found["measures"].values()))[ALL])
    parts = [
        f"<h1>{escape(settings['name'])}</h1>",
        f"<p>{len(found['sites'])} sites, {settings['seeds']} seeds, {policy['rounds']} rounds of "
        f"{policy['sync_interval']} batches, merge {escape(policy['merge'])}, scenario {escape(scenario['kind'])}. "
        "Numbers are mean ± deviation over the seeds; in brackets, where 95 % of other samples of the test rows would "
        "lie. On all test rows <i>local</i> is the mean over the sites' own models; at a site it is the site's own."
        "</p>",
        _html(overview(found)),
        _forest(found),
        "<h2>The sites</h2>" + _html(sites(found)),
        *(f"<h2>{WORDS[name]} by site</h2>" + _html(by_site(found, name)) for name in names),
        f"<h2>{main} of every model at every site</h2>" + _html(matrix(found)) + _heat(found),
    ]
    further: list[tuple[str, str, Callable[[Mapping[str, Any]], Table]]] = [
        ("gain", f"Gain in {main} at home over the own model", gains),
        ("groups", f"{main} by subgroup", groups),
        ("unseen", f"{main} at a site that never trained", unseen),
        ("published", "Published figures", published),
    ]
    parts += [f"<h2>{title}</h2>" + _html(table(found)) for key, title, table in further if found[key]]
    if found["calibration"]:
        parts.append("<h2>Calibration</h2>" + _calibration(found))
    ends = [f"<li>seed {seed}: <code>{digest}</code></li>" for seed, digest in found["checkpoints"].items() if digest]
    if ends:
        parts.append(f"<h2>The swarm's last checkpoints</h2><ul>{''.join(ends)}</ul>")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(settings['name'])}</title>"
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _html(table: Table) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(one)}</{tag}>" for one in cells) + "</tr>"

    columns, rows = table
    return f"<table>{row(columns, 'th')}{''.join(row(one, 'td') for one in rows)}</table>"


def _forest(found: Mapping[str, Any]) -> str:
    """The main metric of every arm at every site, with intervals."""
    scopes = [ALL, MEAN, *(site["name"] for site in found["sites"])]
    arms = list(found["measures"])
    figure, axes = plt.subplots(figsize=(9, 0.5 + 0.45 * len(scopes)))
    for number, arm in enumerate(arms):
        for place, scope in enumerate(scopes):
            one = found["measures"][arm].get(scope, {}).get(found["main"], {})
            if "mean" in one:
                at = place + (number - (len(arms) - 1) / 2) * 0.18
                axes.plot([one.get("low", one["mean"]), one.get("high", one["mean"])], [at, at], color=COLORS[arm])
                axes.plot(one["mean"], at, "o", color=COLORS[arm], label=arm if place == 0 else None)
    axes.set_yticks(range(len(scopes)), scopes)
    axes.invert_yaxis()
    axes.set_xlabel(WORDS[found["main"]])
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _svg(figure)


def _heat(found: Mapping[str, Any]) -> str:
    models, names = list(found["matrix"]), [site["name"] for site in found["sites"]]
    figure, axes = plt.subplots(figsize=(2 + 0.9 * len(names), 1 + 0.4 * len(models)))
    rows = [[found["matrix"][model][name].get("mean", float("nan")) for name in names] for model in models]
    shown = axes.imshow(rows, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(models)), models)
    figure.colorbar(shown, label=WORDS[found["main"]])
    return _svg(figure)


def _calibration(found: Mapping[str, Any]) -> str:
    figure, axes = plt.subplots(figsize=(5, 5))
    axes.plot([0, 1], [0, 1], ":", color="#aaaaaa")
    for arm, curve in found["calibration"].items():
        axes.plot([x for x, _, _ in curve], [y for _, y, _ in curve], "o-", color=COLORS[arm], label=arm)
    axes.set_xlabel("what the model says")
    axes.set_ylabel("what is seen")
    axes.legend()
    return _svg(figure)


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return "<figure>" + text.getvalue()[text.getvalue().index("<svg") :] + "</figure>"
