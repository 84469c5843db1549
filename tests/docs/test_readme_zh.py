"""The README in Traditional Chinese is the same README."""

from __future__ import annotations

import re
from pathlib import Path

from support.markdown import README, README_ZH, fences, in_backticks, prose

EACH_OTHER = {"README.md", "README.zh-TW.md"}


def links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)]+)\)", prose(page)) if link not in EACH_OTHER]


def headings(page: Path) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(page), re.MULTILINE)]


def test_the_code_is_identical() -> None:
    assert fences(README_ZH) == fences(README)


def test_links_pictures_headings_and_lists_are_the_same() -> None:
    """In the same order; but for the links from one to the other."""
    assert links(README_ZH) == links(README)
    assert headings(README_ZH) == headings(README)
    assert len(re.findall(r"^\* ", prose(README_ZH), re.MULTILINE)) == len(
        re.findall(r"^\* ", prose(README), re.MULTILINE)
    )
    assert sorted(in_backticks(README_ZH)) == sorted(in_backticks(README)), "names are not translated"


def test_links_lead_somewhere() -> None:
    for link in links(README_ZH):
        assert "://" in link or (README_ZH.parent / link.partition("#")[0]).exists(), link


def test_it_is_written_as_in_taiwan() -> None:
    """No simplified character of the common ones, and no word that is only used elsewhere."""
    simplified = (
        "们个为来说时国发会对关经过见无应间实现设备处总务变员图网络传输队连线执错误软运优单开门问题户据数让请语该详"
    )
    assert not set(prose(README_ZH)) & set(simplified)
    for word in ["服務器", "線程", "網絡", "默認", "信息", "軟件", "隊列", "內存", "接口", "視頻", "文檔"]:
        assert word not in prose(README_ZH), word
