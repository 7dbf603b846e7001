"""`--template`: from the command line to prepared data, a trained adapter, answers and scores, and what disagrees."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import psynth_jax as ps
from psynth_jax import prompts
from psynth_jax.data.record import BranchText, Record, write_records
from psynth_jax.data.shards import open_shards
from psynth_jax.errors import InputError
from tests.cli.conftest import Command, ModelCopy, Refused
from tests.tiny import tiny_model

# What Qwen3's template does: thinking is opened, unless it is switched off.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>none</think>{% else %}<think>{% endif %}"
    "{% endif %}"
)
OFF, NOT_OFF = "enable_thinking=false", "enable_thinking=true"


@pytest.fixture
def thinker(model_copy: ModelCopy) -> Path:
    model_copy.configure(max_position_embeddings=8192)
    (model_copy.path / "chat_template.jinja").write_text(THINKS)
    return model_copy.path


@pytest.fixture
def records(tmp_path: Path) -> Path:
    cities = ("Oslo", "Rome", "Bern", "Riga")
    made = [
        Record(f"q{number}", "cities", "Which city?", (BranchText(f"{city} is far."),), city, (city,))
        for number, city in enumerate(cities)
    ]
    write_records(tmp_path / "cities.jsonl", made)
    return tmp_path / "cities.jsonl"


def config(folder: Path, model: Path, data: Path) -> Path:
    file = folder / "run.yaml"
    file.write_text(
        f"workdir: {folder / 'run'}\nmodel: {model}\ndata: [{{path: {data}}}]\ntrainable: {{rank: 2, mapper_hidden: 4}}\n"
        "optimizer: {schedule: constant}\nbatch: {tokens: 16384, examples: 2, shapes: 1}\ntrain: {steps: 1}\n"
        "logging: {tensorboard: false}\n"
    )
    return file


@pytest.mark.slow
def test_from_data_to_answers(psynth: Command, refused: Refused, thinker: Path, records: Path, tmp_path: Path) -> None:
    model = ps.load_model(thinker)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    # data: rendered with the variables, which task.json notes
    for folder, given in (("off", ("--template", OFF)), ("on", ())):
        options = ("--limit", 4, "--seed", 1, "--model", thinker)
        done = psynth("data", "prepare", "synthetic", "--into", tmp_path / folder, *options, *given)
        assert done.code == 0, done.err
        for shard in open_shards(tmp_path / folder):
            assert shard.info["template"] == ({"enable_thinking": False} if given else {})
            for tokens in (shard[0].prompt, shard[0].pasted):
                text = tokenizer.backend.decode(tokens.tolist())
                assert text.endswith("<think>none</think>" if given else "<think>")
    # training: data and config must agree
    file = config(tmp_path, thinker, tmp_path / "off")
    said = refused("train", file)
    assert "was prepared with enable_thinking=false, and is used with no template variables" in said
    said = refused("train", file, f"data.0.path={tmp_path / 'on'}", "--template", OFF)
    assert "was prepared with no template variables, and is used with enable_thinking=false" in said
    done = psynth("train", file, "--template", OFF)
    assert done.code == 0, done.err
    adapter = tmp_path / "run" / "adapter"
    assert json.loads((adapter / "psynth_adapter.json").read_text())["template"] == {"enable_thinking": False}
    said = refused("train", file)  # a continued run has the variables that it began with
    assert "template" in said
    # answers: the adapter's variables, unless others are given
    for given, variables, warned in (
        ((), {"enable_thinking": False}, False),
        (("--template", NOT_OFF), {"enable_thinking": True}, True),
    ):
        ask = ("--model", thinker, "--branch", "Oslo is far.", "--max-new-tokens", 3, "--adapter", adapter, "--json")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            done = psynth("run", "Which?", *ask, *given)
        assert ("warning: the adapter was trained with enable_thinking=false" in done.err) == warned
        found = json.loads(done.out)
        assert found["template"] == variables
        prompt = tokenizer.chat(prompts.synthesis_messages("Which?"), **variables)
        assert found["prompt_tokens"] == len(prompt)
    # scores: one template for all methods, noted with the rows
    common = ("--data", records, "--model", thinker, "--max-new-tokens", 2, "--methods", "text,branches", "--json")
    done = psynth("eval", *common, "--into", tmp_path / "scores", "--adapter", adapter)
    assert done.json["template"] == {"enable_thinking": False}
    pasted = tokenizer.chat(prompts.baseline_messages("Which city?", ["Oslo is far."]), enable_thinking=False)
    assert done.json["methods"]["text"]["prompt_tokens"] == len(pasted)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["enable_thinking"], "write NAME=VALUE"),
        (["=false"], "write NAME=VALUE"),
        (["enable_thinking=[1"], "not valid YAML"),
        (["enable_thinking=1", "enable_thinking=2"], "given twice"),
        (["enable-thinking=1"], "is not the name"),
        (["messages=1"], "set by the library"),
        (["enable_thinking=.nan"], "JSON values"),
        (["enable_thinkin=false"], "reads no variable enable_thinkin"),
    ],
)
def test_what_is_none_is_refused(refused: Refused, thinker: Path, tmp_path: Path, given: Any, said: str) -> None:
    options = [word for pair in given for word in ("--template", pair)]
    assert said in refused("run", "Which?", "--model", thinker, "--branch", "x", "--adapter", "none", *options)
    assert said in refused(
        "data", "prepare", "synthetic", "--limit", 2, "--into", tmp_path / "data", "--model", thinker, *options
    )


def test_rows_of_another_template_are_refused(
    psynth: Command, refused: Refused, thinker: Path, records: Path, tmp_path: Path
) -> None:
    common = ("eval", "--data", records, "--model", thinker, "--max-new-tokens", 2, "--methods", "text", "--limit", 1)
    assert psynth(*common, "--into", tmp_path / "rows").code == 0
    settings = tmp_path / "rows" / "settings.json"
    assert "template is {'enable_thinking': False}, it was {}" in refused(
        *common, "--into", tmp_path / "rows", "--template", OFF
    )
    earlier = json.loads(settings.read_text())
    del earlier["template"]  # as an earlier version wrote it
    settings.write_text(json.dumps(earlier))
    assert "template is" in refused(*common, "--into", tmp_path / "rows", "--template", OFF)
    assert psynth(*common, "--into", tmp_path / "rows").code == 0


class TestAPI:
    @pytest.mark.slow
    def test_synthesizer_and_sessions(self, thinker: Path) -> None:
        model = ps.load_model(thinker)
        tokenizer = model.tokenizer
        assert tokenizer is not None
        quick = ps.ParallelSynthesis(model, template={"enable_thinking": False})
        slow = ps.ParallelSynthesis(model)
        assert (quick.template, slow.template) == ({"enable_thinking": False}, {})
        asked = prompts.question_messages("why?")
        for synth, variables in ((quick, {"enable_thinking": False}), (slow, {})):
            chat = synth.session()
            assert chat.reply("why?", max_new_tokens=2).prompt_tokens == len(tokenizer.chat(asked, **variables))
            opened = "<think>none</think>" if variables else "<think>"
            turn = f"<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n{opened}"
            assert chat.reply("and?", max_new_tokens=2).prompt_tokens == len(tokenizer.encode(turn))
        assert tokenizer.template_variables == {}

    def test_an_adapter_brings_its_own(self, thinker: Path) -> None:
        model = ps.load_model(thinker)
        adapter = ps.Adapter(None, None, template={"enable_thinking": False})
        assert ps.ParallelSynthesis(model, adapter).template == {"enable_thinking": False}
        with pytest.warns(UserWarning, match="trained with enable_thinking=false, and is used with no template"):
            other = ps.ParallelSynthesis(model, adapter, template={})
        assert other.template == {}
        with pytest.warns(UserWarning, match="trained with no template variables"):
            ps.ParallelSynthesis(model, ps.Adapter(None, None, template={}), template={"enable_thinking": False})
        # What an adapter was made with is not known of one of PEFT: nothing to compare with.
        unknown = ps.ParallelSynthesis(model, ps.Adapter(None, None), template={"enable_thinking": False})
        assert unknown.template == unknown.adapter.template == {"enable_thinking": False}

    def test_without_a_tokenizer_there_is_nothing_to_render(self) -> None:
        with pytest.raises(InputError, match="no tokenizer"):
            ps.ParallelSynthesis(tiny_model(layers=1), template={"enable_thinking": False})
        with pytest.raises(InputError, match="template must be a mapping"):
            ps.ParallelSynthesis(tiny_model(layers=1), template="enable_thinking=false")
