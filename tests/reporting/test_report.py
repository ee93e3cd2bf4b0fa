import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from spatialreward_jax.reporting.charts import Line, line_chart, ticks
from spatialreward_jax.reporting.records import Records
from spatialreward_jax.reporting.report import Caption, Chart, write_report


def shapes(svg, kind):
    return [e.attrib for e in ElementTree.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{kind}")]


def test_a_chart_draws_points_and_bands_in_order():
    svg = line_chart([Line("a < b", [(0, 0.0), (1, 1.0), (2, 0.5)], [(0, -0.5, 0.5), (2, 0.0, 1.0)])])
    (line,) = shapes(svg, "polyline")
    points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[1][1] < points[2][1] < points[0][1], "larger values stand higher"
    (band,) = shapes(svg, "polygon")
    assert len(band["points"].split()) == 4
    assert "a &lt; b" in svg


@pytest.mark.parametrize("y", [0.0, 3.0])
def test_a_single_point_is_a_dot(y):
    assert len(shapes(line_chart([Line("one", [(5, y)])]), "circle")) == 1


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-3, 5, [-2, 0, 2, 4]), (0.5, 0.5, [0.5]), (0, 8, [0, 2, 4, 6, 8])],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_the_report_stands_alone(tmp_path):
    records = Records(tmp_path)
    for step in (0, 1, 2):
        records.numbers(step, {"reward": 0.1 * step, "reward_sem": 0.01})
        records.picture(step, "preview/edits", np.full((2, 2, 3), step, np.uint8))
    charts = [Chart("Reward", {"judge": "reward"}), Chart("Nothing", {"absent": "nowhere"})]
    charts += [Caption("preview.edits", "source | edit\nmake a < b"), Caption("preview.none", "never drawn")]
    path = write_report(tmp_path, {"preset": "tiny", "oracle_gain_ci95": [0.1, 0.25], "none": None}, charts)
    text = path.read_text()
    assert "0.1 to 0.25" in text and "Reward" in text and "Nothing" not in text and "<td>none" not in text
    assert len(re.findall(r'src="data:image/png;base64', text)) == 2, "the first and the newest picture"
    assert not re.search(r'(src|href)="(?!data:)', text), "no other file is needed"
    assert "source | edit<br>make a &lt; b" in text and "never drawn" not in text
    assert text.count("<polygon") == 1, "a band from the standard error"
