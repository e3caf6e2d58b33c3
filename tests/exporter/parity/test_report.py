"""The report: complete, harmless whatever a model is called, and written whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from exporter.errors import BundleError
from exporter.parity import TOLERANCES, Metrics, OutputResult, ParityReport, to_markdown, write_report
from exporter.processor import Processor

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b",
    "`code`",
    "# heading",
    "two\nlines\r\nand | a row |",
    "[link](http://example.com) ![image](x)",
    "*bold* __too__ \\| &lt;",
]


def result(**values: Any) -> OutputResult:
    fields: dict[str, Any] = {
        "target": "onnxruntime",
        "precision": "fp32",
        "output": "logits",
        "metrics": Metrics(max_abs=1.25e-6, mean_abs=3e-7, cosine=1.0, sqnr_db=123.4, top1_agreement=0.5),
        "worst_case": "one token",
        "compared": 12,
        "failures": [],
    }
    return OutputResult(**fields | values)


def report_on(*results: OutputResult, **values: Any) -> ParityReport:
    fields: dict[str, Any] = {
        "model": "tiny",
        "task": "text-classification",
        "seed": 7,
        "cases": ["one token", "odd length"],
        "versions": {"numpy": "2.0"},
        "processor": Processor(name="a CPU", int8="AVX2"),
        "results": results,
    }
    return ParityReport(**fields | values)


def rows(page: str) -> list[list[str]]:
    """The cells of every line of the table, as a Markdown reader splits them."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in page.splitlines() if line[:1] == "|"
    ]


def test_the_page_holds_every_number() -> None:
    page = to_markdown(report_on(result()))
    assert page.startswith("# Parity of tiny (text-classification): PASS\n")
    assert "on 2 batches of inputs (seed 7): one token, odd length." in page
    heading, _, cells = rows(page)
    assert dict(zip(heading, cells, strict=True)) == {
        "engine": "onnxruntime fp32",
        "output": "logits",
        "max abs": "1.25e-06",
        "mean abs": "3e-07",
        "cosine": "1.000000",
        "SQNR (dB)": "123.4",
        "top-1": "50.00%",
        "worst case": "one token",
        "verdict": "PASS",
    }
    assert "## Failures" not in page
    assert "Judged on a CPU; ONNX Runtime multiplied int8 with AVX2." in page
    assert "Versions: numpy 2.0." in page


@pytest.mark.parametrize(
    ("metrics", "sqnr", "top1"),
    [
        (Metrics(), "exact", ""),
        (Metrics(sqnr_db=0.04, top1_agreement=1.0), "0.0", "100.00%"),
        (Metrics(finite=False), "0.0", ""),  # never "exact"
    ],
)
def test_what_was_not_measured(metrics: Metrics, sqnr: str, top1: str) -> None:
    cells = rows(to_markdown(report_on(result(metrics=metrics))))[2]
    assert (cells[5], cells[6]) == (sqnr, top1)


def test_a_failure_is_shown_with_its_reason() -> None:
    failed = result(precision="int8", failures=["cosine 0.5 < 0.97", "SQNR 1.0 dB < 12 dB"])
    page = to_markdown(report_on(result(), failed))
    assert page.startswith("# Parity of tiny (text-classification): FAIL\n")
    assert [cells[-1] for cells in rows(page)[2:]] == ["PASS", "FAIL"]
    assert "## Failures\n\n- onnxruntime int8, logits: cosine 0.5 &lt; 0.97; SQNR 1.0 dB &lt; 12 dB\n" in page


def test_a_report_on_nothing_says_fail() -> None:
    assert to_markdown(report_on()).startswith("# Parity of tiny (text-classification): FAIL\n")


def test_the_tolerances_of_every_precision_stand_once_with_their_reasons() -> None:
    page = to_markdown(report_on(result(), result(output="other"), result(precision="int8")))
    for precision in ("fp32", "int8"):
        [line] = [line for line in page.splitlines() if line.startswith(f"- {precision}: ")]
        tolerance = TOLERANCES[precision]
        assert tolerance.reason in line
        assert f"at most {tolerance.scaled_max_abs:g}, SQNR at least {tolerance.sqnr_db:g} dB" in line
    assert "- fp16: " not in page


@pytest.mark.parametrize("name", HOSTILE)
def test_names_never_become_markup(name: str) -> None:
    harmless = to_markdown(report_on(result(failures=["x"])))
    page = to_markdown(
        report_on(
            result(target=name, output=name, worst_case=name, failures=[name]),
            model=name,
            task=name,
            cases=[name, name],
            versions={name: name},
        )
    )
    assert len(page.splitlines()) == len(harmless.splitlines())
    assert [len(cells) for cells in rows(page)] == [9, 9, 9]
    assert "<" not in page
    assert not re.search(r"(?<!\\)`", page)
    bare = re.sub(r"\\.", "", "\n".join(line for line in page.splitlines() if not line.startswith(("#", "|"))))
    assert not set("`*_[]|#\\") & set(bare.partition("## Tolerances")[0])
    assert page.count("\n# ") == 0


def test_escaped_names_read_as_they_are() -> None:
    [line] = [line for line in to_markdown(report_on(model="a_b <x>|`\\")).splitlines() if line.startswith("# ")]
    assert line == r"# Parity of a\_b &lt;x&gt;\|\`\\ (text-classification): FAIL"


@pytest.mark.parametrize("name", [*HOSTILE, "模型 😀"])
def test_json_loads_back(name: str, tmp_path: Path) -> None:
    written = report_on(result(target=name, failures=[name]), model=name, versions={name: name})
    write_report(written, tmp_path / "new" / "report")
    content = (tmp_path / "new" / "report" / "parity.json").read_bytes()
    assert ParityReport.model_validate_json(content) == written
    assert json.loads(content)["model"] == name
    assert (tmp_path / "new" / "report" / "parity.md").read_text(encoding="utf-8") == to_markdown(written)
    assert sorted(path.name for path in (tmp_path / "new" / "report").iterdir()) == ["parity.json", "parity.md"]


def test_a_page_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(report_on(result(), model="old"), tmp_path)
    before = (tmp_path / "parity.md").read_bytes()
    write_text = Path.write_text

    def half(path: Path, text: str, **options: Any) -> int:
        if "parity.md" not in path.name:
            return write_text(path, text, **options)
        write_text(path, text[:10], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        write_report(report_on(result(), model="new"), tmp_path)
    assert (tmp_path / "parity.md").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parity.json", "parity.md"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    with pytest.raises(BundleError, match="Cannot write"):
        write_report(report_on(result()), tmp_path / "taken")
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"
