"""docs/coming_from.md: this project's commands there are commands, in both languages the same."""

import re
import shlex

import pytest

from src.commands import COMMANDS, command_parser
from tests.helpers import ROOT

PAGES = ("docs/coming_from.md", "docs/zh/coming_from.md")
COMMAND_OF = {"prepare_data": "prepare", "create_csv": "split"}
OTHERS = ("import_monai",)  # tools without a parser of src.commands


def own_commands(page):
    """The commands in the last column of the tables."""
    rows = [line.split("|") for line in (ROOT / page).read_text("utf-8").splitlines()]
    cells = [row[-2] for row in rows if len(row) == 4]
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]


def links(page):
    return re.findall(r"\]\(([\w./]+\.md)(#[^)]+)?\)", (ROOT / page).read_text("utf-8"))


@pytest.mark.parametrize(
    "code", [code for code in own_commands(PAGES[0]) if code.startswith("python ")]
)
def test_the_command_parses(code):
    script, *arguments = shlex.split(code)[1:]
    assert (ROOT / script).is_file()
    name = script.removeprefix("tools/").removesuffix(".py")
    if name not in OTHERS:
        command = COMMAND_OF.get(name, name)
        assert command in COMMANDS
        command_parser(command, script).parse_args(arguments)


def test_both_languages_name_the_same_commands():
    assert sorted(own_commands(PAGES[0])) == sorted(own_commands(PAGES[1]))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_headings(page):
    for name, anchor in links(page):
        target = (ROOT / page).parent / name
        titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
        found = {"#" + re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
        assert not anchor or anchor in found, (name, anchor)
