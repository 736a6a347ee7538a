"""The report that a data-protection officer reads: plain words, then numbers and pictures; one HTML document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from swarm.learn.leak.attacks import BY_CHANCE
from swarm.learn.leak.measures import DECIBEL_MIN

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:left}
th{background:#f5f5f5}img{image-rendering:pixelated;height:112px;margin:2px}.bad{color:#a11}.good{color:#161}
figure{display:inline-block;margin:.3rem}figcaption{font-size:12px;color:#555}.warn{background:#fff3d6;padding:.6rem}"""
HARD = " (fewer records than the policy gives a round: the hard case)"
COLOR = {"recognisable": "bad", "partly recognisable": "bad", "not recognisable": "good"}


def page(results: Mapping[str, Any], pictures: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """The whole report: it asks nobody for anything, and holds true records where there are pictures.

    Args:
        pictures: by attack, pairs of a true record and its nearest reconstruction as URLs.
    """
    found = results["attacks"]
    parts = [
        f"<h1>What an update of {escape(results['site'])} gives away</h1>",
        "<p class=warn>Keep this page inside: its pictures are true records. Only its digest goes to the ledger.</p>"
        if results["images"]
        else "",
        "<ul>" + "".join(f"<li>{line}</li>" for line in words(results)) + "</ul>",
        "<h2>Can single records be reconstructed?</h2>",
        "<p>Somebody who sees an update looks for records that would have caused it. A record counts as recognised "
        f"where the reconstruction is nearer to it by {DECIBEL_MIN:g} dB than what can be had without the update, and "
        "puts it first in a line-up with other records of the site and of its label that were not in the update. "
        "<i>First by chance</i> is how often that happens to somebody who knows nothing of the update; "
        "<i>left behind</i> is the share of the line-up that a true record beats, half of it by chance. A view is "
        f"recognisable where half of the records were recognised, and not where chance does as much more often than in "
        f"{BY_CHANCE:.0%} of checks. Labels are known to the attacker, inferred, or not needed.</p>",
        _table(*_rows_of_attacks(found)),
        *(_pictures(found[name]["title"], pairs) for name, pairs in pictures.items() if pairs),
        "<h2>Can it be told who was trained on?</h2>",
        _membership(results["membership"]),
        "<h2>How much is given away at least?</h2>",
        _canaries(results["canaries"]),
        "<h2>What this does not show</h2>",
        "<p>These are the attacks that were tried, with the effort spent on them: a stronger one may see more, "
        "and none of them proves that nothing can be seen. An optimizer other than plain SGD is attacked as if it were "
        "one. Only differential privacy bounds what any attack can tell.</p>",
    ]
    title = f"Leak check: {escape(results['recipe'])}, {escape(results['site'])}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def words(results: Mapping[str, Any]) -> list[str]:
    """The verdicts, a sentence each, as HTML."""
    found = []
    for one in results["attacks"].values():
        better = one["decibel"] - max(one["decibel_without_the_update"], one["decibel_of_an_unrelated_gradient"])
        why = (
            f"{one['recognised']} of {one['judged']} records were recognised; reconstructions are "
            f"{abs(better):.1f} dB {'nearer' if better > 0 else 'further away'} than without the update"
        )
        found.append(
            f"<b>{escape(one['title'])}</b>{HARD if one['hard'] else ''}: "
            f"<b class={COLOR[one['verdict']]}>{one['verdict']}</b>, because {why}."
        )
    return found


def _rows_of_attacks(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    images = any("ssim" in one for one in found.values())
    columns = ["what is seen", "records in it", "verdict", "recognised", "dB", "best", "dB without it",
               "dB, unrelated", "first in line-up", "95 % interval", "first by chance", "left behind"]  # fmt: skip
    rows = []
    for one in found.values():
        row = [
            one["title"], _span(one["records"]), one["verdict"], f"{one['recognised']} of {one['judged']}",
            f"{one['decibel']:.1f}", f"{one['decibel_best']:.1f}", f"{one['decibel_without_the_update']:.1f}",
            f"{one['decibel_of_an_unrelated_gradient']:.1f}", f"{one['first_in_line_up']} of {one['judged']}",
            "{:.1%} to {:.1%}".format(*one["first_interval"]), f"{one['first_by_chance']:.2%}",
            "cannot be measured" if one["rivals_left_behind"] is None else f"{one['rivals_left_behind']:.1%}",
        ]  # fmt: skip
        rows.append(row + ([f"{one['ssim']:.2f} ({one['ssim_of_the_mean_image']:.2f})"] if images else []))
    return columns + (["SSIM (mean image)"] if images else []), rows


def _span(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _membership(found: Mapping[str, Any]) -> str:
    if "undefined" in found:
        return f"<p>{escape(found['undefined'])}</p>"
    rows = []
    for name, one in found.items():
        if not isinstance(one, Mapping):
            continue
        rate = one["true_positives"]
        at = (
            f"cannot be measured with {one['others']} others"
            if rate is None
            else f"{rate:.2%} (rests on {int(one['others'] / 1000)} of {one['others']} others)"
        )
        rows.append([name, f"{one['auc']:.3f}", at])
    return _table(["attack on the merged model", "AUC (0.5 is chance)", "members found at 0.1 % false alarms"], rows)


def _canaries(found: Mapping[str, Any]) -> str:
    if "undefined" in found:
        return f"<p>{escape(found['undefined'])}</p>"
    rows = [
        [name, f"{one['right']} of {one['guesses']}", f"{one['epsilon_min']:.2f}", f"{one['epsilon_seen_max']:.2f}"]
        for name, one in found.items()
        if isinstance(one, Mapping)
    ]
    told = (
        f"<p>With {found['confidence']:.0%} confidence epsilon is at least what stands here. The accountant says that "
        f"the private run spends at most {found['accountant_epsilon']:.2f}.</p>"
    )
    columns = ["what is seen", "right guesses", "epsilon at least", "most that so many canaries can show"]
    return told + _table(columns, rows)


def _pictures(title: str, pairs: Sequence[tuple[str, str]]) -> str:
    below = "<figcaption>true, reconstructed</figcaption>"
    shown = "".join(f"<figure><img src='{true}'><img src='{found}'>{below}</figure>" for true, found in pairs)
    return f"<h3>{escape(title)}</h3>{shown}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(columns, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
