"""The page of a study: complete, self-contained, with the best variants in its charts."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from longrec.data.files import read_json
from longrec.study.collect import collect
from longrec.study.config import StudyConfig
from longrec.study.trial import plan
from tests.longrec.pages import text_of
from tests.longrec.study.small_study import SERVED_LENGTH, Finished, results_in, write_result


def test_the_page_shows_every_variant(finished: Finished) -> None:
    _, out = finished
    text = text_of(out / "report.html")
    words = (
        "stca",
        "mean",
        "Served length",
        "Paired differences",
        "Scaling",
        "Trials",
        "Calibration",
        "4 of 4 trials",
    )
    for word in words:
        assert word in text


def test_the_page_loads_nothing(finished: Finished) -> None:
    _, out = finished
    page = (out / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    assert page.count("<svg") == 3


def test_the_drawing_of_differences_is_a_file_of_its_own(finished: Finished) -> None:
    _, out = finished
    root = ElementTree.parse(out / "differences.svg").getroot()
    facts = read_json(out / "study.json")
    [difference] = [row for row in facts["differences"] if row["length"] == SERVED_LENGTH]
    [title] = [element.text for element in root.iter() if element.tag.endswith("}title")]
    assert title.startswith(f"mean: {difference['auc']:+.4f}")


def test_charts_show_the_reference_and_the_best(
    finished: Finished,
    tmp_path: Path,
) -> None:
    study, out = finished
    variants = {f"v{number}": {"model.id_dim": 8 + number} for number in range(10)}
    many = StudyConfig("many", study.base, variants)
    result = next(iter(results_in(out).values()))
    for number, trial in enumerate(plan(many)):
        auc = 0.5 + 0.01 * number
        rows = [{**row, "auc": auc} for row in result["lengths"]]
        changed = {
            **result,
            "variant": trial.variant,
            "lengths": rows,
        }
        write_result(tmp_path, trial.id, changed)
    collect(tmp_path, many)
    page = (tmp_path / "report.html").read_text()
    section = page.partition("<h2>Served length")[2]
    legend = section.partition('id="legend_1"')[2].partition("</svg>")[0]
    drawn = re.findall(r">(v\d)<", legend)
    assert sorted(drawn) == ["v0", "v4", "v5", "v6", "v7", "v8", "v9"]
