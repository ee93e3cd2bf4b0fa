"""The report of a training run: one HTML file that needs no other file, made from the run's record."""

import base64
import dataclasses
import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from spatialreward_jax.reporting.charts import Line, line_chart
from spatialreward_jax.reporting.records import Curves, read_curves, read_pictures

FILE = "report.html"
Z95 = 1.96
"""Standard errors to each side of a mean in a 95% band."""

STYLE = """body{font:15px/1.5 sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:2px 12px 2px 0;text-align:left;vertical-align:top}
figure{display:inline-block;margin:0 16px 16px 0}figcaption{font-weight:600}
img{image-rendering:pixelated;max-width:100%}.note{color:#666}"""


@dataclasses.dataclass(frozen=True)
class Chart:
    """title; series: label -> name of a metric. Where the record has `NAME_sem` too, its standard error, the line gets
    a 95% band. Series without a point are left out."""

    title: str
    series: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Caption:
    """picture: a kind of picture, "EVALUATOR.NAME". text: what its rows and columns show, in lines."""

    picture: str
    text: str


def write_report(workdir: pathlib.Path, summary: Mapping[str, Any], shown: Sequence[Chart | Caption]) -> pathlib.Path:
    """Writes `workdir/report.html`: the summary, charts, and the newest picture of each kind, the first beside it.

    A `Caption` among what is `shown` stands below the pictures of its kind.

    Returns: its path. Raises InputError where the run left no record.
    """
    curves, title = read_curves(workdir), f"{summary.get('preset') or 'training'}: {workdir.name}"
    parts = [f"<h1>{html.escape(title)}</h1>", _table(summary), "<h2>Curves</h2>"]
    captions = {one.picture: one.text for one in shown if isinstance(one, Caption)}
    parts += [drawn for chart in shown if isinstance(chart, Chart) and (drawn := _chart(chart, curves))]
    parts += ['<p class="note">Bands: 95%, from the standard error of the mean.</p>', "<h2>Pictures</h2>"]
    for name, pictures in read_pictures(workdir).items():
        ends = pictures if len(pictures) < 2 else [pictures[0], pictures[-1]]
        parts += [_picture(f"{name}, step {step}", path) for step, path in ends]
        if name in captions:
            parts.append(f'<p class="note">{"<br>".join(map(html.escape, captions[name].splitlines()))}</p>')
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    path = workdir / FILE
    part = path.with_name(f".{FILE}.part")
    body = "\n".join(parts)
    part.write_text(f"<!doctype html><html><head>{head}</head><body>\n{body}\n</body></html>\n", encoding="utf-8")
    part.replace(path)
    return path


def _table(summary: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(_shown(value))}</td></tr>"
        for name, value in summary.items()
        if value is not None
    )
    return f"<table>{rows}</table>"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " to ".join(_shown(x) for x in value)
    return str(value)


def _chart(chart: Chart, curves: Curves) -> str:
    lines = [_line(label, name, curves) for label, name in chart.series.items() if curves.get(name)]
    if not lines:
        return ""
    return f"<figure><figcaption>{html.escape(chart.title)}</figcaption>{line_chart(lines)}</figure>"


def _line(label: str, name: str, curves: Curves) -> Line:
    errors = dict(curves.get(f"{name}_sem", ()))
    band = [(x, y - Z95 * errors[x], y + Z95 * errors[x]) for x, y in curves[name] if x in errors]
    return Line(label, curves[name], band)


def _picture(caption: str, path: pathlib.Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{image}</figure>"
