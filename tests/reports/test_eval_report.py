"""The report of evaluations: files, tables on the page, and texts of models that try to break out of it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from psynth_jax.errors import DataError, InputError
from psynth_jax.reports.eval_report import report_eval
from tests.reports.evaluation_folders import does_not_fit, lines, question, row, rows, write_folder

HOSTILE = "</script></td><img src=https://a.b/c onerror=alert(1)><!--<script>\u2028{{ 7*7 }}{% raw %}\ud800"
PICTURES = ["accuracy", "accuracy_ttft", "time", "tokens", "gate"]


class Page(HTMLParser):
    """What a browser finds on a page: elements, texts of cells by table, texts of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("script", "style"):
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self._inside in ("td", "th"):
            self.tables[-1][-1][-1] += data.strip()
        elif self._inside in ("script", "style"):
            attributes, before = self.scripts[-1]
            self.scripts[-1] = attributes, before + data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def data(self) -> list[Any]:
        return [json.loads(text) for kind, text in self.scripts if kind.get("type") == "application/json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "sums", 300)


def page_of(found: dict[str, Any]) -> Page:
    return Page(Path(found["page"]).read_text(encoding="utf-8"))


class TestFiles:
    def test_lie_in_the_folder(self, folder: Path) -> None:
        before = {path.name for path in folder.iterdir()}
        found = report_eval([folder])
        pictures = [str(folder / f"report_{name}.png") for name in PICTURES]
        described = {"name": "sums", "task": "sums", "questions": 300, "running": False}
        described["methods"] = ["text", "branches", "question", "wrong-branches", "vote"]
        assert found == {
            "page": str(folder / "report.html"),
            "pictures": pictures,
            "evaluations": [described],
        }
        made = {"report.html", *(f"report_{name}.png" for name in PICTURES)}
        assert {path.name for path in folder.iterdir()} == before | made
        for picture in pictures:
            assert matplotlib.image.imread(picture)[..., 3].max() == 1

    def test_lie_elsewhere(self, tmp_path: Path, folder: Path) -> None:
        before = {path.name for path in folder.iterdir()}
        found = report_eval([folder], tmp_path / "a" / "b")
        assert found["page"] == str(tmp_path / "a" / "b" / "report.html")
        assert {path.name for path in folder.iterdir()} == before

    def test_replace_those_of_an_earlier_report_and_nothing_else(self, folder: Path) -> None:
        report_eval([folder])
        (folder / "report_notes.png").write_text("mine")
        told = json.loads((folder / "summary.json").read_text())
        del told["gate"]
        (folder / "summary.json").write_text(json.dumps(told))
        report_eval([folder])
        assert not (folder / "report_gate.png").exists()
        assert (folder / "report_notes.png").read_text() == "mine"

    def test_follow_the_umask(self, folder: Path) -> None:
        before = os.umask(0o027)
        try:
            found = report_eval([folder])
        finally:
            os.umask(before)
        for path in (found["page"], *found["pictures"]):
            assert stat.S_IMODE(Path(path).stat().st_mode) == 0o640

    def test_the_page_is_written_last_and_whole(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        report_eval([folder])
        old = (folder / "report.html").read_bytes()
        lines(folder / "questions.jsonl", [question(1)])

        def full(self: Path, target: Path) -> Path:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(DataError, match="the disk is full"):
            report_eval([folder])
        assert (folder / "report.html").read_bytes() == old


class TestPage:
    def test_tables(self, folder: Path) -> None:
        reached, took, settings = page_of(report_eval([folder])).tables
        assert reached[0][:3] == ["Method", "Accuracy, %", "Accuracy against text, points"]
        assert reached[1] == ["Methods"] and reached[4] == ["Controls"]
        assert [line[0] for line in reached if len(line) > 1][1:] == [
            "text",
            "branches",
            "question",
            "wrong-branches",
            "vote",
        ]
        assert reached[3][1:] == ["70.0 [65.0, 75.0]", "+10.0 [-1.0, 15.0]", "90.0 [85.0, 95.0]", "0", "0", "300"]
        assert took[3] == ["branches", "200 ms", "2.20 s", "60", "740", "110"]
        assert ["template.think", "false"] in settings

    def test_needs_nothing_else(self, folder: Path) -> None:
        page = page_of(report_eval([folder]))
        for tag, attributes in page.elements:
            for name in ("src", "href", "srcset", "action", "data"):
                value = attributes.get(name)
                if value is not None:
                    assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value[:80])
        assert not page.tags("link") and not page.tags("iframe") and not page.tags("base")
        style = next(text for kind, text in page.scripts if "prefers-color-scheme" in text)
        assert not re.findall(r"https?:|@import|url\(", style)

    def test_pictures_are_those_on_the_disk(self, folder: Path) -> None:
        found = report_eval([folder])
        inside = []
        for image in page_of(found).tags("img"):
            source = image["src"] or ""
            inside.append(base64.b64decode(source.removeprefix("data:image/png;base64,")))
            assert image["alt"]
        assert inside == [Path(path).read_bytes() for path in found["pictures"]]

    def test_allows_its_own_script_and_style_alone(self, folder: Path) -> None:
        page = page_of(report_eval([folder]))
        policy = next(meta["content"] for meta in page.tags("meta") if "http-equiv" in meta) or ""
        assert "default-src 'none'" in policy and "unsafe" not in policy
        code = [text for kind, text in page.scripts if "type" not in kind]
        assert len(code) == 2
        for text in code:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
        for _, attributes in page.elements:
            assert not [name for name in attributes if name == "style" or name.startswith("on")]

    def test_the_script_makes_texts_and_no_html(self, folder: Path) -> None:
        page = page_of(report_eval([folder]))
        (script,) = (text for kind, text in page.scripts if "use strict" in text)
        ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc|fetch\(|import\("
        assert not re.findall(ways, script)

    def test_can_be_read_without_seeing_it(self, folder: Path) -> None:
        page = page_of(report_eval([folder]))
        assert page.tags("html") == [{"lang": "en"}]
        assert len(page.tags("h1")) == 1
        assert {head.get("scope") for head in page.tags("th")} == {"col", "row", "rowgroup"}
        regions = [each for each in page.tags("div") if each.get("role") == "region"]
        assert regions and all(each.get("aria-label") and each.get("tabindex") == "0" for each in regions)

    def test_data_of_the_questions(self, folder: Path) -> None:
        (data,) = page_of(report_eval([folder])).data()
        assert len(data["questions"]) == 300
        assert data["questions"][12]["answers"]["branches"]["prediction"] == "12"

    def test_texts_are_limited(self, folder: Path) -> None:
        (data,) = page_of(report_eval([folder], limit_text=10)).data()
        assert data["questions"][12]["question"].startswith("What is th\n[")

    def test_how_to_read_it(self, folder: Path) -> None:
        text = Path(report_eval([folder])["page"]).read_text()
        assert "that crosses 0 is noise" in text
        assert "its batch of up to 4" in text
        assert "No method has answered all questions yet" not in text

    def test_a_run_that_is_going_on(self, folder: Path) -> None:
        (folder / "summary.json").unlink()
        found = report_eval([folder])
        assert found["evaluations"][0]["running"] is True
        assert "No method has answered all questions yet" in Path(found["page"]).read_text()
        assert page_of(found).tables[0][3][1] == "70.0"

    def test_without_questions(self, folder: Path) -> None:
        (folder / "questions.jsonl").unlink()
        (data,) = page_of(report_eval([folder])).data()
        assert data["questions"][12] | {"answers": 0} == {
            "task": "sums",
            "id": "q12",
            "question": "",
            "right": ["12"],
            "workers": [],
            "seconds": None,
            "flags": [],
            "answers": 0,
        }


class TestSeveral:
    def test_are_compared(self, tmp_path: Path, folder: Path) -> None:
        other = write_folder(tmp_path / "b" / "sums", 20)
        found = report_eval([folder, other], tmp_path / "page")
        names = ["comparison", *(f"{number}_{name}" for number in (1, 2) for name in PICTURES)]
        assert found["pictures"] == [str(tmp_path / "page" / f"report_{name}.png") for name in names]
        page = page_of(found)
        assert page.tables[0][0] == [
            "Method",
            "1. sums: Accuracy, %",
            "1. sums: time to first token",
            "2. sums: Accuracy, %",
            "2. sums: time to first token",
        ]
        assert page.tables[0][3] == ["branches", *["70.0 [65.0, 75.0]", "200 ms"] * 2]
        assert [len(data["questions"]) for data in page.data()] == [300, 20]
        assert len(page.tables) == 1 + 2 * 3

    def test_need_a_place(self, folder: Path) -> None:
        with pytest.raises(InputError, match="2 folders make one page; say where it goes with --into DIR"):
            report_eval([folder, folder])


class TestHostile:
    @pytest.fixture
    def hostile(self, tmp_path: Path) -> Path:
        """Every text that a model, a data set or a folder's name brings along."""
        folder = write_folder(tmp_path / "<img src=x onerror=alert(2)>", 10)
        (folder / "settings.json").write_text(json.dumps({HOSTILE: HOSTILE, "batch": 1}))
        workers = [{"text": HOSTILE, "finish_reason": HOSTILE, "tokens": 1, "role": HOSTILE}]
        asked = [question(0, task=HOSTILE, id=HOSTILE, question=HOSTILE, answers=[HOSTILE], workers=workers)]
        lines(folder / "questions.jsonl", asked)
        texts = dict.fromkeys(("task", "id", "prediction", "written", "key", "error", "route", "finish_reason"), HOSTILE)
        odd = row("text", 0, answers=[HOSTILE], confidence={HOSTILE: 1}) | texts
        lines(folder / "rows.jsonl", [*rows(10), odd, odd | {"method": HOSTILE}])
        told = json.loads((folder / "summary.json").read_text())
        told["task"] = told["gate"]["measure"] = told["gate"]["score"] = HOSTILE
        told["methods"]["text"][HOSTILE] = {"mean": 0.5, "low": 0.4, "high": 0.6}
        (folder / "summary.json").write_text(json.dumps(told))
        return folder

    def test_nothing_breaks_out(self, hostile: Path, folder: Path) -> None:
        page, tame = page_of(report_eval([hostile])), page_of(report_eval([folder]))
        assert {tag for tag, _ in page.elements} == {tag for tag, _ in tame.elements}
        assert len(page.scripts) == len(tame.scripts) == 3
        assert len(page.tags("img")) == 5
        for _, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on")]
        text = Path(report_eval([hostile])["page"]).read_text()
        assert "<img src=https" not in text and "<img src=x" not in text
        assert "{{ 7*7 }}" in text  # a form in a text is not filled in

    def test_texts_arrive_as_they_are(self, hostile: Path) -> None:
        (data,) = page_of(report_eval([hostile])).data()
        shown = HOSTILE.replace("\ud800", "?")  # half of a pair cannot be written
        found = next(each for each in data["questions"] if each["id"] == shown)
        assert (found["question"], found["workers"][0]["text"], found["right"]) == (shown, shown, [shown])
        assert found["answers"]["text"]["written"] == found["answers"][shown]["written"] == shown

    def test_a_question_that_does_not_fit(self, folder: Path) -> None:
        lines(folder / "rows.jsonl", [does_not_fit("text", 1)])
        (data,) = page_of(report_eval([folder])).data()
        assert data["questions"][1]["answers"]["text"]["error"] == "too long by 5 tokens"


class TestRefused:
    def test_no_folder_at_all(self) -> None:
        with pytest.raises(InputError, match="no folder is given"):
            report_eval([])

    def test_a_limit_of_nothing(self, folder: Path) -> None:
        with pytest.raises(InputError, match="limit-text is -3; it must be at least 1"):
            report_eval([folder], limit_text=-3)

    def test_a_place_that_cannot_be_written(self, folder: Path) -> None:
        with pytest.raises(DataError, match="cannot write /proc/page: "):
            report_eval([folder], "/proc/page")

    def test_a_place_that_is_a_file_or_a_bucket(self, tmp_path: Path, folder: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="file is a file; --into names a folder"):
            report_eval([folder], tmp_path / "file")
        with pytest.raises(InputError, match="is in a bucket"):
            report_eval([folder], "gs://bucket/page")

    def test_nothing_is_written_for_a_damaged_folder(self, tmp_path: Path, folder: Path) -> None:
        with (folder / "rows.jsonl").open("a") as file:
            file.write("{\n")
        with pytest.raises(DataError, match=r"rows\.jsonl:1501: not JSON"):
            report_eval([folder], tmp_path / "page")
        assert not (tmp_path / "page").exists()
