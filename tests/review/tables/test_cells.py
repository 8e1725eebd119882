"""Tables come back as they were written, and hold no formula."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stairdata_review.tables.cells import CELL_LIMIT, FORMATS, neutralise, read_rows, restore, shorten, write_rows
from stairdata_schemas.errors import InputError, UsageError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TRICKY = [
    "=1+1",
    "'=1+1",
    "''",
    "+",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "a\r\nb\rc\n",
    "_xFFFE_",
    "_x005F_xFFFF_",
    "\ufffe\uffff",
    "\x00\x1b\x85\u2028",
    "_x000D_",
    "1",
    "1.0",
    "TRUE",
    "2020-01-01",
    "#N/A",
    " lead",
    "trail ",
    "\n",
    "😀",
    ",;\"'\t",
]


@given(st.lists(TEXTS, min_size=1, max_size=5))
@example(TRICKY)
@settings(max_examples=40)
@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_is_read(suffix: str, tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / f"table{suffix}"
    rows = [{"item_id": str(number), "text": text} for number, text in enumerate(texts)]
    write_rows(path, ["item_id", "text"], rows, {}, "notes")
    assert read_rows(path) == rows


def test_a_line_of_the_guidelines_ends_with_a_line_feed_alone(tmp_path: Path) -> None:
    import fastexcel

    path, notes = tmp_path / "t.xlsx", "one\u2028still one\n\ntwo\x85\x0cstill two\n"
    write_rows(path, ["item_id"], [{"item_id": "1"}], {}, notes)
    sheet = fastexcel.read_excel(path).load_sheet("Guidelines", header_row=None, skip_whitespace_tail_rows=False)
    lines = sheet.to_polars().to_series().to_list()
    assert [line or "" for line in lines] == ["one\u2028still one", "", "two\x85\x0cstill two"]


@given(TEXTS)
def test_no_cell_begins_like_a_formula(text: str) -> None:
    assert not neutralise(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert restore(neutralise(text)) == text


def test_the_cells_of_a_csv_file_are_harmless_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_rows(path, ["text"], [{"text": text} for text in TRICKY], {}, "notes")
    with path.open(encoding="utf-8-sig", newline="") as file:
        cells = [row[0] for row in csv.reader(file)][1:]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


@pytest.mark.parametrize("text", ["x" * 40_000, "😀" * 20_000, "x" * CELL_LIMIT, "=" * CELL_LIMIT])
@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_a_text_that_no_cell_holds_is_cut_visibly(text: str, suffix: str, tmp_path: Path) -> None:
    short = shorten(text, suffix)
    assert short.endswith("characters stand in the dataset]")
    assert len(neutralise(short).encode("utf-16-le")) // 2 <= CELL_LIMIT
    write_rows(tmp_path / f"t{suffix}", ["text"], [{"text": short}], {}, "")
    assert read_rows(tmp_path / f"t{suffix}") == [{"text": short}]
    assert shorten(text, ".jsonl") == text


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_csv_file_of_another_country_is_read(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(separator.join(["item_id", "verdict"]) + "\r\n" + separator.join(["1", '"a,b"']), encoding="utf-8")
    assert read_rows(path) == [{"item_id": "1", "verdict": "a,b"}]


def test_a_spreadsheet_offers_the_answers(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "t.xlsx"
    write_rows(path, ["verdict"], [{"verdict": ""}], {"verdict": ["A", "B"]}, "# Before you begin")
    with zipfile.ZipFile(path) as book:
        assert '"A,B"' in book.read("xl/worksheets/sheet2.xml").decode().replace("&quot;", '"')


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"item_id\r\n", "no rows"),
        ("t.csv", b"item_id\r\n\xff\xfe", "UTF-8"),
        ("t.csv", b"item_id,verdict\n1,A\n2,B,C\n", "line 3 has 3 fields, the head has 2: '2,B,C'"),
        ("t.csv", b"item_id;verdict\n1\n", "line 2 has 1 fields, the head has 2"),
        ("t.csv", b'item_id,verdict\n1,"A\n2,B\n', "line 2: a quoted field .* does not end"),
        ("t.csv", b"item_id,item_id\n1,A\n", "'item_id' stands twice in the head, as columns 1 and 2"),
        ("t.xlsx", b"no zip", "can't be read"),
        ("t.jsonl", b"[1]\n", "has to be an object"),
        ("t.jsonl", b"{\n", "is not JSON"),
        ("missing.csv", None, "does not exist"),
        ("missing.xlsx", None, "does not exist"),
    ],
)
def test_files_that_are_no_tables(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / name)


def test_a_spreadsheet_with_a_column_twice(tmp_path: Path) -> None:
    import xlsxwriter

    with xlsxwriter.Workbook(tmp_path / "t.xlsx") as book:
        sheet = book.add_worksheet("Review")
        for number, row in enumerate([["item_id", "verdict", "", "verdict", ""], ["1", "A", "x", "B", "y"]]):
            sheet.write_row(number, 0, row)
    with pytest.raises(InputError, match="'verdict' stands twice in the head, as columns 2 and 4"):
        read_rows(tmp_path / "t.xlsx")


@pytest.mark.parametrize(
    ("name", "content"), [("t.jsonl", '{"item_id": "1"}\n'), ("t.csv", "item_id\n1\n"), ("t.csv", '"item_id"\n"1"\n')]
)
def test_a_byte_order_mark_is_no_part_of_the_table(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert read_rows(tmp_path / name) == [{"item_id": "1"}]


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.csv, \.xlsx, \.jsonl"):
        read_rows(tmp_path / "t.ods")
