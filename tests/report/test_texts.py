"""The texts of the report: the same keys and values in every language."""

import re
from string import Formatter

import pytest

from src.report import texts
from src.report.findings import mask_findings, metric_findings, plane_findings
from src.report.texts import FINDINGS, LANGUAGES, METRICS, PAGE, Texts, finding_text
from tests.report.made import box_mask, grey_image, on_grid

TABLES = {**PAGE, **METRICS, **{f"finding {code}": text for code, text in FINDINGS.items()}}


@pytest.mark.parametrize("key", TABLES)
def test_a_text_has_all_languages_with_the_same_values(key):
    translations = TABLES[key]
    assert len(translations) == len(LANGUAGES) and all(translations)
    fields = [{name for _, name, *_ in Formatter().parse(t) if name} for t in translations]
    assert all(names == fields[0] for names in fields)
    english, chinese = translations
    assert english.isascii() or not re.search("[\u4e00-\u9fff]", english)
    assert re.search("[\u4e00-\u9fff]", chinese)


def test_no_key_is_in_two_tables():
    assert not set(PAGE) & set(METRICS)


def test_a_number_comes_with_its_noun():
    english, chinese = Texts("en"), Texts("zh")
    assert [english.count(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
    assert [chinese.count(n, "failure") for n in (1, 2)] == ["1 例不合格", "2 例不合格"]


def test_every_finding_is_translated(small_config):
    """Those that the rules make of masks, and those that have no value in them."""
    config = small_config("dstRes=2,2,2")
    side = grey_image()
    side.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
    low = {"dice": 0.1, "empty": 0.0, "base_empty": 1.0, "apex_empty": 1.0}
    found = {
        **plane_findings(side, config),
        **mask_findings(on_grid(0 * box_mask()), config),
        **mask_findings(on_grid(box_mask()), config, cut_share=0.2),
        **metric_findings({**low, "reference_ml": 0, "prediction_ml": 0}),
        "large": finding_text("large", most=250),
    }
    assert set(found) >= set(FINDINGS) - {"border"}
    for code, english in found.items():
        assert Texts("en").finding(code, english) == english
        chinese = Texts("zh").finding(code, english)
        assert set(re.findall("[A-Za-z]+", chinese)) <= {"ml", "Dice"}
    assert Texts("zh").finding("plane", found["plane"]) == "矢状位扫描，训练数据为轴位"
    # Of another version: neither its code nor its words are known.
    assert Texts("zh").finding("later", "a rule") == Texts("zh").finding("small", "a rule")


REASONS = {
    "about_prediction": {
        "plane": ("another plane", "扫描层面"),
        "empty": ("are empty", "为空"),
        "border": ("touch the border", "触及图像"),
        "small": ("below {least}", "小于 {least}"),
        "large": ("above {most}", "大于 {most}"),
        "cut": ("more than {cut} % was cut off", "超过 {cut} %"),
        "earlier mask": ("is of another image, or cannot be made anew", "属于另一幅图像或无法重新"),
    },
    "about_evaluation": {
        "plane": ("another plane", "扫描层面"),
        "low_dice": ("below {low_dice}", "低于 {low_dice}"),
        "empty_reference": ("empty mask", "掩码为空"),
        "empty_prediction": ("empty mask", "掩码为空"),
        "no_base": ("base or apex", "底部或尖部"),
        "no_apex": ("base or apex", "底部或尖部"),
    },
}


def test_the_failures_tell_every_reason():
    assert {code for reasons in REASONS.values() for code in reasons} == {*FINDINGS, "earlier mask"}
    for key, reasons in REASONS.items():
        for words in reasons.values():
            assert all(word in text for word, text in zip(words, PAGE[key], strict=True))


def test_the_language_is_told_to_the_browser():
    assert [Texts(language).language for language in texts.LANGUAGES] == ["en", "zh-CN"]
