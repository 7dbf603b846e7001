"""torch's side of a benchmark in a process of its own, whose memory is free again when it ends.

request on stdin  ->  python -m psynth_jax.bench.torch_process  ->  seconds on stdout, both JSON
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Self, TypeAlias

from psynth_jax.bench import against_torch, torch_published
from psynth_jax.bench.question import Question, Writing
from psynth_jax.bench.timing import in_turn
from psynth_jax.config import DecoderConfig
from psynth_jax.errors import UserError

PREFIX = 8  # tokens before what is kept of a branch


@dataclasses.dataclass(frozen=True)
class TorchRequest:
    """source: a model's name, or a config whose weights are drawn.  writing: workers, if any."""

    source: str | DecoderConfig
    dtype: str
    questions: tuple[Question, ...]
    repeats: int
    writing: Writing | None = None

    def to_json(self) -> str:
        """Return it as text."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        fields["questions"] = [dataclasses.asdict(each) for each in self.questions]
        fields["writing"] = None if self.writing is None else dataclasses.asdict(self.writing)
        if isinstance(self.source, DecoderConfig):
            fields["source"] = self.source.model_dump(mode="json")
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        if not isinstance(fields["source"], str):
            fields["source"] = DecoderConfig.model_validate_json(json.dumps(fields["source"]))
        fields["questions"] = tuple(Question(**each) for each in fields["questions"])
        if fields["writing"] is not None:
            fields["writing"] = Writing(**fields["writing"])
        return cls(**fields)


def measure_apart(request: TorchRequest) -> dict[str, Any]:
    """Measure in another process; return what `measure` does.

    Raises `UserError` with the last line that the process wrote, if it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "psynth_jax.bench.torch_process"],
        input=request.to_json(),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"torch could not be measured: {last}")
    return json.loads(done.stdout)


Report: TypeAlias = Callable[[dict[str, Any]], None]


def measure(request: TorchRequest, report: Report = lambda _: None) -> dict[str, Any]:
    """Measure all that is asked for; `report` is called with each record as soon as there is one.

    Returns questions (torch_text_s, torch_published_s of each) and, of workers, torch_workers_s.
    """
    found: dict[str, Any] = {"questions": []}
    for question in request.questions:
        record = {"question": question.name, "torch_repeats": request.repeats}
        record |= _question(request, question)
        found["questions"].append(record)
        report(record)
    if request.writing is not None:
        seconds = _workers(request, request.writing)
        found["torch_workers_s"] = seconds
        report({"torch_workers_s": seconds})
    return found


def routes(
    source: str | DecoderConfig,
    dtype: str,
    question: Question,
) -> dict[str, Callable[[], float]]:
    """Return measures of both ways to the first token: from the text, and "torch published"."""
    model = against_torch.loaded(source, dtype)
    vocabulary = model.config.vocab_size
    before = question.prompt(vocabulary)[:PREFIX]
    branches = []
    for text in question.texts(vocabulary):
        branches.append(torch_published.encode(model, text, before))
    prompt = question.prompt(vocabulary)
    return {
        "torch": against_torch.prefill(source, dtype, question.pasted(vocabulary)),
        "torch published": torch_published.first_token(model, prompt, branches),
    }


def _question(request: TorchRequest, question: Question) -> dict[str, float]:
    seconds = in_turn(routes(request.source, request.dtype, question), request.repeats)
    return {"torch_text_s": seconds["torch"], "torch_published_s": seconds["torch published"]}


def _workers(request: TorchRequest, writing: Writing) -> float:
    vocabulary = against_torch.loaded(request.source, request.dtype).config.vocab_size
    prompts = writing.prompts(vocabulary)
    write = against_torch.generate(request.source, request.dtype, prompts, writing.new_tokens)
    return in_turn({"workers": write}, request.repeats)["workers"]


def main() -> None:
    """Answer the request on stdin."""
    out = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no part of the answer
    found = measure(TorchRequest.from_json(sys.stdin.read()))
    out.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
