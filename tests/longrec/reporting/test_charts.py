"""Test charts: what they show, and that equal charts are equal files."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from longrec.reporting import charts
from longrec.reporting.charts import Labels, Series, interval_chart, line_chart

LABELS = Labels("a <title>", "events (log scale)", "AUC")


def texts_of(svg: str) -> list[str]:
    """Return the texts of a drawing, which is well-formed XML."""
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == LABELS.title
    return [element.text or "" for element in root.iter() if element.tag.endswith("}text")]


def test_axes_are_named_and_equal_charts_are_equal_files() -> None:
    series = [Series([(1, 0.5), (2, 0.6)], name="model & co")]
    svg = line_chart(series, LABELS)
    texts = texts_of(svg)
    assert {"events (log scale)", "AUC", "model & co"} <= set(texts)
    assert svg == line_chart(series, LABELS)
    assert "date" not in svg


def test_lengths_are_the_labels_of_a_logarithmic_axis() -> None:
    points = [(length, 0.5) for length in (0, 500, 512, 10_000)]
    texts = texts_of(line_chart([Series(points)], LABELS, is_log=True))
    assert {"0", "500", "10,000"} <= set(texts)
    assert "512" not in texts, "too close to 500"


@pytest.mark.parametrize("xs", [[0], [32], list(range(1, 40))])
def test_one_value_and_many_values_can_be_drawn(xs: list[int]) -> None:
    texts_of(line_chart([Series([(x, 0.5) for x in xs])], LABELS, is_log=True))


def test_a_dot_shows_its_text() -> None:
    svg = line_chart([Series([(1, 0.5)], texts=['a <b> "c"'])], LABELS)
    root = ElementTree.fromstring(svg)
    titles = [element.text for element in root.iter() if element.tag.endswith("}title")]
    assert titles == ['a <b> "c"']


def test_intervals_are_colored_by_their_sign() -> None:
    intervals = [("up", 0.2, 0.1, 0.3), ("down", -0.2, -0.3, -0.1), ("level", 0.0, -0.1, 0.1)]
    svg = interval_chart(intervals, LABELS)
    assert {"up", "down", "level"} <= set(texts_of(svg))
    assert charts.GREEN in svg
    assert charts.RED in svg


@pytest.mark.parametrize("name", ["_hidden", "a$b$c", "$", "数据", "%s {x} \\frac"])
@pytest.mark.filterwarnings("error")
def test_any_name_is_shown_as_it_is(name: str) -> None:
    shown = texts_of(line_chart([Series([(1, 0.5)], name=name)], Labels(LABELS.title, name, name)))
    assert [text.strip() for text in shown].count(name) == 3
    assert name in texts_of(interval_chart([(name, 0.2, 0.1, 0.3)], LABELS))
