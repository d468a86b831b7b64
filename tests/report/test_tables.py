"""Tables as text to copy."""

from __future__ import annotations

import csv
import io

from jointquant.report.tables import Row, Table, comparison_table, statistics_table
from report_data import comparison, statistics

ODD = Table("t", ("recipe", "perplexity"), (Row(('a|b, "c"', "1.0")), Row(("x", "−2"))))


def test_markdown_has_one_line_a_row_and_no_cell_splits() -> None:
    assert ODD.markdown() == '| recipe | perplexity |\n| - | - |\n| a\\|b, "c" | 1.0 |\n| x | −2 |\n'


def test_csv_reads_back() -> None:
    assert list(csv.reader(io.StringIO(ODD.csv()))) == [[*ODD.columns], *([*row.cells] for row in ODD.rows)]


def test_every_row_has_every_column() -> None:
    data = comparison(texts=("a/b.txt", "wikitext2"))
    compared = comparison_table(data, {row["recipe"]: "c0" for row in data["rows"]})
    for table in (compared, statistics_table(statistics())):
        assert {len(row.cells) for row in table.rows} == {len(table.columns)}
    assert compared.columns[1:4] == ("perplexity, b.txt", "Δ, b.txt", "KL, b.txt")
