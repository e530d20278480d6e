"""Tables inside documents equal the files of the tables, also in the documents of the project."""

from __future__ import annotations

import pytest

from afl.reporting.documents import MARKED, refreshed
from afl.tables.committed import write_answer
from scripts.report import main
from scripts.reports.questions import DOCUMENTS, ROOT

TABLE = """Title. Protocol.

- a note

**set: AP**

|  | fl |
| --- | ---: |
| fcos | 59.0 |
| average | 58.0 |

**set: AP_r**

|  | fl |
| --- | ---: |
| fcos | 44.0 |
| average | 43.0 |
"""


@pytest.fixture
def results(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table.md").write_text(TABLE, encoding="utf-8")
    return tmp_path


def test_marks_are_filled_with_their_blocks_and_other_text_is_kept(results):
    text = "before\n<!-- table mine AP_r -->\nold\n<!-- end -->\nbetween <!-- end -->\n<!-- caption mine -->\n<!-- end -->\nafter"
    new = refreshed(text, results)
    assert new == (
        "before\n<!-- table mine AP_r -->\n\n**AP_r**\n\n|  | fl |\n| --- | ---: |\n| fcos | 44.0 |\n| average | 43.0 |\n\n<!-- end -->\n"
        "between <!-- end -->\n<!-- caption mine -->\n\nTitle. Protocol.\n\n- a note\n\n<!-- end -->\nafter"
    )
    assert refreshed(new, results) == new
    text = "<!-- file mine/table.md -->\n<!-- end -->"
    assert refreshed(text, results) == f"<!-- file mine/table.md -->\n\n{TABLE.strip()}\n\n<!-- end -->"


def test_average_rows_of_several_metrics_make_one_table(results):
    new = refreshed("<!-- average mine AP_r AP -->\n<!-- end -->", results)
    assert new == (
        "<!-- average mine AP_r AP -->\n\n|  | fl |\n| --- | ---: |\n| AP_r | 43.0 |\n| AP | 58.0 |\n\n<!-- end -->"
    )


def test_missing_tables_give_an_error(results):
    with pytest.raises(ValueError, match="no table of AP_c"):
        refreshed("<!-- table mine AP_c -->\n<!-- end -->", results)
    with pytest.raises(FileNotFoundError, match="other"):
        refreshed("<!-- caption other -->\n<!-- end -->", results)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documents_show_the_current_tables(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert MARKED.search(text) and text.count("<!-- end -->") == len(MARKED.findall(text))
    assert refreshed(text, ROOT / "results") == text, "run python -m scripts.report documents"


def test_the_command_reports_its_changes(capsys):
    main(["documents"])
    assert capsys.readouterr().out.splitlines() == [f"up to date: {name}" for name in DOCUMENTS]


def test_an_answer_about_afl_ends_with_the_note_that_documents_do_not_repeat(tmp_path):
    note = "AFL here is a reconstruction: the paper's formula is not public."
    write_answer(tmp_path / "gate.md", "| loss |\n| --- |\n| afl |")
    write_answer(tmp_path / "noise.md", "| loss |\n| --- |\n| baflo |")
    assert (tmp_path / "gate.md").read_text() == f"| loss |\n| --- |\n| afl |\n\n{note}\n"
    assert note not in (tmp_path / "noise.md").read_text()
    document = refreshed("<!-- file gate.md -->\nold\n<!-- end -->", tmp_path)
    assert document == "<!-- file gate.md -->\n\n| loss |\n| --- |\n| afl |\n\n<!-- end -->"
