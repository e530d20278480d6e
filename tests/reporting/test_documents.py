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
    new = refreshed(text, results, results)
    assert new == (
        "before\n<!-- table mine AP_r -->\n\n**AP_r**\n\n|  | fl |\n| --- | ---: |\n| fcos | 44.0 |\n| average | 43.0 |\n\n<!-- end -->\n"
        "between <!-- end -->\n<!-- caption mine -->\n\nTitle. Protocol.\n\n- a note\n\n<!-- end -->\nafter"
    )
    assert refreshed(new, results, results) == new
    text = "<!-- file mine/table.md -->\n<!-- end -->"
    assert (
        refreshed(text, results, results) == f"<!-- file mine/table.md -->\n\n{TABLE.strip()}\n\n<!-- end -->"
    )


def test_average_rows_of_several_metrics_make_one_table(results):
    new = refreshed("<!-- average mine AP_r AP -->\n<!-- end -->", results, results)
    assert new == (
        "<!-- average mine AP_r AP -->\n\n|  | fl |\n| --- | ---: |\n| AP_r | 43.0 |\n| AP | 58.0 |\n\n<!-- end -->"
    )


CONTRASTS = """| contrast | metric | mean | detectors x units | unpooled | pooled | random detectors | p by unit | p by difference |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| a - fl | AP | +6.6 | 6 x 3 | **± 1.8** (2) | **± 1.1** (12) | ± 9.9 (5) | 0.25 (1.00) | 0.02 (0.02) |
| a - fl | AP_r | -11.1 | 6 x 3 | ± 2.9 (2) | **± 1.6** (12) | ± 2.9 (2) | 0.25 (1.00) | 0.02 (0.02) |
| a - b (best other) | AP | +0.1 | 6 x 3 | ± 0.2 (2) | ± 0.3 (12) | ± 0.4 (5) | 0.25 (1.00) | 0.02 (0.02) |
| a - c | AP | -2.9 | 6 x 1 | — | — | — | 1.00 (1.00) | 0.06 (0.50) |
"""


def test_contrasts_of_several_files_make_one_table(results):
    for name in ("mine", "other"):
        (results / name).mkdir(exist_ok=True)
        (results / name / "a-contrasts.md").write_text(CONTRASTS, encoding="utf-8")
    mark = "<!-- contrasts AP_r AP\nover FL = mine/a-contrasts.md: a - fl\nthe same = other/a-contrasts.md: a - fl\n-->"
    text = f"one\n{mark}\nold\n<!-- end -->\ntwo"
    new = refreshed(text, results, results.parent)
    place = results.name
    assert new == (
        f"one\n{mark}\n\n| | AP_r | AP |\n| --- | ---: | ---: |\n"
        f"| [over FL]({place}/mine/a-contrasts.md) | -11.1 (± 2.9, **1.6**, 2.9) | +6.6 (± **1.8**, **1.1**, 9.9) |\n"
        f"| [the same]({place}/other/a-contrasts.md) | -11.1 (± 2.9, **1.6**, 2.9) | +6.6 (± **1.8**, **1.1**, 9.9) |"
        "\n\n<!-- end -->\ntwo"
    )
    assert refreshed(new, results, results.parent) == new
    one = "<!-- contrasts AP\nover b = mine/a-contrasts.md: a - b\n-->\n<!-- end -->"
    assert "+0.1 (± 0.2, 0.3, 0.4)" in refreshed(one, results, results)
    one = one.replace("AP\n", "AP AP_f\n").replace(
        "a - b", "a - c"
    )  # one unit, and a metric that the table does not have
    assert "| -2.9 | — |" in refreshed(one, results, results)
    with pytest.raises(ValueError, match="no contrast 'a - d'"):
        refreshed(one.replace("a - c", "a - d"), results, results)


def test_missing_tables_give_an_error(results):
    with pytest.raises(ValueError, match="no table of AP_c"):
        refreshed("<!-- table mine AP_c -->\n<!-- end -->", results, results)
    (results / "mine" / "table.md").write_text(TABLE.replace("| average | 58.0 |\n", ""), encoding="utf-8")
    with pytest.raises(ValueError, match="one detector, so no average of AP"):
        refreshed("<!-- average mine AP -->\n<!-- end -->", results, results)
    with pytest.raises(FileNotFoundError, match="other"):
        refreshed("<!-- caption other -->\n<!-- end -->", results, results)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documents_show_the_current_tables(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert MARKED.search(text) and text.count("<!-- end -->") == len(MARKED.findall(text))
    assert refreshed(text, ROOT / "results", (ROOT / name).parent) == text, (
        "run python -m scripts.report documents"
    )


def test_the_command_reports_its_changes(capsys):
    main(["documents"])
    assert capsys.readouterr().out.splitlines() == [f"up to date: {name}" for name in DOCUMENTS]


def test_an_answer_about_afl_ends_with_the_note_that_documents_do_not_repeat(tmp_path):
    note = "AFL here is a reconstruction: the paper's formula is not public."
    write_answer(tmp_path / "gate.md", "| loss |\n| --- |\n| afl |")
    write_answer(tmp_path / "noise.md", "| loss |\n| --- |\n| baflo |")
    assert (tmp_path / "gate.md").read_text() == f"| loss |\n| --- |\n| afl |\n\n{note}\n"
    assert note not in (tmp_path / "noise.md").read_text()
    document = refreshed("<!-- file gate.md -->\nold\n<!-- end -->", tmp_path, tmp_path)
    assert document == "<!-- file gate.md -->\n\n| loss |\n| --- |\n| afl |\n\n<!-- end -->"
