"""The page is one file, and its policy allows nothing else."""

from __future__ import annotations

import re

from longrec.serving.web.page import main_page


def test_the_page_loads_nothing_from_elsewhere() -> None:
    html = main_page().html
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//)|@import|url\(""", html)


def test_the_policy_allows_the_script_and_the_style_of_the_page_alone() -> None:
    policy = main_page().policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2


def test_style_and_scripts_stand_in_their_tags() -> None:
    html = main_page().html
    for tag, content in (("style", ":focus-visible"), ("script", "class Timeline")):
        _, inside, _ = re.split(f"</?{tag}>", html)
        assert content in inside


def test_the_page_has_no_inline_style_or_handler() -> None:
    html = main_page().html
    assert not re.search(r"<[a-z]+[^>]*\s(style|on[a-z]+)=", html), "the policy forbids it"
