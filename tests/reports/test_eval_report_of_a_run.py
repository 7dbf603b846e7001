"""The report of an evaluation that really ran: a tiny model, workers' texts from a file, and the numbers of its summary."""

from __future__ import annotations

from pathlib import Path

import pytest

from psynth_jax.convert.adapter_directory import Adapter
from psynth_jax.data.record import write_records
from psynth_jax.evaluation.methods import Synthesizers, choose
from psynth_jax.evaluation.run import Plan, evaluate
from psynth_jax.evaluation.tasks import QATask
from psynth_jax.reports.eval_folder import read_evaluation
from psynth_jax.reports.eval_report import report_eval
from psynth_jax.reports.eval_tables import percent
from psynth_jax.reports.json_objects import Interval
from tests.evaluation.conftest import CITIES, record
from tests.tiny import random_lora, talking_model


@pytest.mark.slow
def test_shows_the_numbers_of_the_summary(tmp_path: Path) -> None:
    data, folder = tmp_path / "cities.jsonl", tmp_path / "results"
    write_records(data, [record(number, city) for number, city in enumerate(CITIES)])
    model = talking_model()
    synthesizers = Synthesizers.over(model, Adapter(random_lora(model.config, 1), None))
    plan = Plan.of(
        QATask(data),
        choose(["text", "branches", "vote", "best-worker"], {"adapter"}),
        batch=8,
        max_new_tokens=4,
    )
    summary = evaluate(plan, synthesizers, folder)
    found = read_evaluation(folder)
    assert not found.running and [method.name for method in found.methods] == list(summary["methods"])
    text = Path(report_eval([folder])["page"]).read_text(encoding="utf-8")
    for method in found.methods:
        told = summary["methods"][method.name]
        assert (method.answers, method.ttft_s, method.total_s) == (5, told["ttft_s"], told["total_s"])
        for score in ("em", "f1"):
            interval = Interval(*(told[score][end] for end in ("mean", "low", "high")))
            assert method.scores[score] == interval and percent(interval) in text
    branches = summary["methods"]["branches"]
    difference = branches["difference_to_text"]["f1"]
    assert found.methods[1].differences["f1"] == Interval(difference["value"], difference["low"], difference["high"])
    asked = found.questions[2]
    assert asked.question == "Which city has harbour 2?"
    assert [worker.text for worker in asked.workers] == ["Oslo has harbour 2.", "Note xx"]
    assert set(found.answers["branches"]["cities", "q2"].scores) == {"em", "f1"}
