"""The results for people: tables as text, and one HTML page with its plots in it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib

from sim.study.experiment import KINDS
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
FURTHER = ("#762a83", "#b8860b", "#01665e", "#c51b7d", "#4d4d4d", "#8c510a", "#35978f", "#542788")
"""Of further arms, in their order, again from the first one where there are more."""
CURVES_MAX = 12
"""How many sites' calibration is drawn; results.json has all."""
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
    arms = list(found["measures"])
    rows = []
    for site, one in found["unseen"].items():
        cells = [cell(one["arms"][arm][found["main"]], interval=True) for arm in arms]
        rows.append([site, str(one["rows"]), *cells, _best(one["models"])])
    return ["site that never trained", "rows", *arms, "best local model"], rows


def alone(found: Mapping[str, Any]) -> Table:
    """Each site's own model on all test rows."""
    names = list(next(iter(found["measures"].values()))[ALL])
    rows = [[site, *(cell(one[name], interval=True) for name in names)] for site, one in found["alone"].items()]
    return ["own model of", *(WORDS[name] for name in names)], rows


def against(found: Mapping[str, Any]) -> Table:
    """By how much each arm is better than FedAvg."""
    scopes = [ALL, MEAN]

    def words(one: Value) -> str:
        return cell(one, interval=True) + (
            "" if "undefined" in one else f", above with {one['above']} of {one['seeds']}"
        )

    rows = [[arm, *(words(one[scope]) for scope in scopes)] for arm, one in found["against"].items()]
    return ["", *scopes], rows


def _best(models: Mapping[str, Value]) -> str:
    known = {name: one["mean"] for name, one in models.items() if "mean" in one}
    best = max(known, key=lambda name: known[name], default="")
    return f"{best} {known[best]:.3f}" if best else "–"


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
        metric, scope = one["metric"], one["scope"]
        there = [one["value"], one["alone"] or "–", one["pooled"] or "–"]
        here = [_ours(found, arm, scope, metric) for arm in ("swarm", "local", "pooled")]
        own = [value["mean"] for value in _own_models(found, scope, metric) if "mean" in value]
        if own:
            here[1] = ", ".join([here[1]] * (here[1] != "–") + [f"{min(own):.3f} to {max(own):.3f}"])
        rows.append([one["what"], WORDS.get(metric, metric), *there, *here, scope, one["differs"]])
    columns = ["there", "single sites there", "pooled there", "swarm here", "own models here", "pooled here"]
    return ["published", "metric", *columns, "on", "what differs"], rows


def _own_models(found: Mapping[str, Any], scope: str, metric: str) -> list[Value]:
    """What each site's own model reaches on all test rows, or in the main metric at one site."""
    if scope == ALL:
        return [site[metric] for site in found["alone"].values() if metric in site]
    names = [f"local {site}" for site in found["alone"]] if metric == found["main"] else []
    return [found["matrix"][name][scope] for name in names if scope in found["matrix"][name]]


def _ours(found: Mapping[str, Any], arm: str, scope: str, metric: str) -> str:
    one = found["measures"].get(arm, {}).get(scope, {}).get(metric)
    return cell(one) if one else "–"


def markdown(table: Table) -> str:
    """For a README."""
    columns, rows = table
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def tables(found: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Every table that there is something for, with its title."""
    main = WORDS[found["main"]]
    names = list(next(iter(found["measures"].values()))[ALL])
    always = [
        ("The arms", overview(found)),
        ("The sites", sites(found)),
        *((f"{WORDS[name]} by site", by_site(found, name)) for name in names),
        (f"{main} of every model at every site", matrix(found)),
    ]
    further: list[tuple[str, str, Callable[[Mapping[str, Any]], Table]]] = [
        ("alone", "Each site's own model on all test rows", alone),
        ("gain", f"Gain in {main} at home over the own model", gains),
        ("against", f"{main} better than that of FedAvg (federated)", against),
        ("groups", f"{main} by subgroup", groups),
        ("unseen", f"{main} at a site that never trained", unseen),
        ("published", "Published figures", published),
    ]
    return always + [(title, table(found)) for key, title, table in further if found[key]]


def page(found: Mapping[str, Any]) -> str:
    """The whole report: one HTML document that asks nobody for anything."""
    settings = found["experiment"]
    policy = settings["policy"]
    shown = {title: f"<h2>{escape(title)}</h2>{_html(table)}" for title, table in tables(found)}
    shown["The arms"] = _html(overview(found)) + _forest(found)
    heat = f"{WORDS[found['main']]} of every model at every site"
    shown[heat] += _heat(found)
    parts = [
        f"<h1>{escape(settings['name'])}</h1>",
        f"<p>{len(found['sites'])} sites, {settings['seeds']} seeds, {policy['rounds']} rounds of "
        f"{policy['sync_interval']} batches, merge {escape(policy['merge'])}. Scenario: {escape(scenario(settings))}. "
        "Numbers are mean ± deviation over the seeds; in brackets, where 95 % of other samples of the test rows would "
        "lie. On all test rows <i>local</i> is the mean over the sites' own models; at a site it is the site's own. "
        "The same holds for an arm of which something stays at the sites."
        "</p>",
        *(
            f"<p><i>{escape(name)}</i> is a swarm with {escape(_said(v))}.</p>"
            for name, v in settings["variants"].items()
        ),
        *shown.values(),
    ]
    if found["calibration"]:
        parts.append("<h2>Calibration</h2>" + _calibration(found))
    ends = [
        f"<li>seed {seed}, {escape(arm)}: <code>{digest}</code></li>"
        for seed, digests in found["checkpoints"].items()
        for arm, digest in digests.items()
    ]
    if ends:
        parts.append(f"<h2>The swarm's last checkpoints</h2><ul>{''.join(ends)}</ul>")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(settings['name'])}</title>"
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def scenario(settings: Mapping[str, Any]) -> str:
    """Who has which rows and who is there when, in a line."""
    asked = dict(settings["scenario"])
    kind = asked.pop("kind")
    taken = {key for keys in KINDS.values() for key in keys}
    told = {key: value for key, value in asked.items() if (key in KINDS[kind] if key in taken else value)}
    return f"{kind}, {_said(told)}" if told else str(kind)


def _said(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())


def _html(table: Table) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(one)}</{tag}>" for one in cells) + "</tr>"

    columns, rows = table
    return f"<table>{row(columns, 'th')}{''.join(row(one, 'td') for one in rows)}</table>"


def _forest(found: Mapping[str, Any]) -> str:
    """The main metric of every arm at every site, with intervals."""
    scopes = [ALL, MEAN, *(site["name"] for site in found["sites"])]
    arms = list(found["measures"])
    colors = _colors(found)
    figure, axes = plt.subplots(figsize=(9, 0.5 + (0.2 + 0.07 * len(arms)) * len(scopes)))
    for number, arm in enumerate(arms):
        for place, scope in enumerate(scopes):
            one = found["measures"][arm].get(scope, {}).get(found["main"], {})
            if "mean" in one:
                at = place + (number - (len(arms) - 1) / 2) * 0.72 / len(arms)
                axes.plot([one.get("low", one["mean"]), one.get("high", one["mean"])], [at, at], color=colors[arm])
                axes.plot(one["mean"], at, "o", color=colors[arm], label=arm if place == 0 else None)
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
    """What models say against what is seen: on all test rows, and at home at the first sites."""
    colors = _colors(found)
    scopes = [ALL, *(site["name"] for site in found["sites"])][: 1 + CURVES_MAX]
    across = min(len(scopes), 4)
    down = -(-len(scopes) // across)
    figure, fields = plt.subplots(down, across, figsize=(3 * across, 3 * down), squeeze=False, sharex=True, sharey=True)
    for scope, axes in zip(scopes, fields.flat, strict=False):
        axes.plot([0, 1], [0, 1], ":", color="#aaaaaa")
        axes.set_title(scope, fontsize="medium")
        for arm, curves in found["calibration"].items():
            if scope in curves:
                said, seen, _ = zip(*curves[scope], strict=True)
                axes.plot(said, seen, "o-", markersize=3, color=colors[arm], label=arm)
    for axes in list(fields.flat)[len(scopes) :]:
        axes.set_axis_off()
    figure.supxlabel("what the model says")
    figure.supylabel("what is seen")
    fields[0, 0].legend(fontsize="small")
    return _svg(figure)


def _colors(found: Mapping[str, Any]) -> dict[str, str]:
    further = [arm for arm in found["measures"] if arm not in COLORS]
    return COLORS | {arm: FURTHER[number % len(FURTHER)] for number, arm in enumerate(further)}


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return "<figure>" + text.getvalue()[text.getvalue().index("<svg") :] + "</figure>"
