"""The report of a training run: pictures of its curves, and one page that needs nothing else.

    DIR/report.html     the page: summary, pictures inside of it, config
    DIR/loss.png ...    the same pictures

Made of what lies in WORKDIR: metrics.jsonl, and config.json if it is there.  Knows files only: no model, no trainer.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from psynth_jax.axes import HostArray
from psynth_jax.directories import replacing, writing
from psynth_jax.errors import InputError
from psynth_jax.files import read_text
from psynth_jax.storage.paths import AnyPath, as_path
from psynth_jax.training.curves import OTHER, PANELS, Curves, draw, read_metrics
from psynth_jax.training.metric_files import FILE

CONFIG, PAGE = "config.json", "report.html"


def report_train(workdir: str | AnyPath, into: str | AnyPath | None = None) -> dict[str, Any]:
    """Draw the curves of a training run and write its page; a report that is there is replaced.

    Args:
      workdir: of `psynth train`.
      into: folder; None is WORKDIR/report.

    Returns:
      "page" (its path), "pictures" (their paths), the facts of `summarise`, and "damaged_lines" where metrics has some.

    Raises:
      InputError: `workdir` is none, its config cannot be read, or `into` holds something else.
      DataError: no step is there yet, or the report cannot be written.
    """
    source = as_path(workdir)
    target = source / "report" if into is None else as_path(into)
    (curves, damaged), config = read_metrics(source / FILE), _config(source / CONFIG)
    facts = summarise(curves)
    if damaged:
        facts["damaged_lines"] = damaged
    names = [PAGE, OTHER, *(panel.file for panel in PANELS)]
    with writing(target), replacing(target, names, "a training report") as fresh:
        titles = draw(curves, fresh)
        pictures = {title: (fresh / file).read_bytes() for file, title in titles.items()}
        page = _page(source.resolve().name, facts, pictures, config)
        # A config may hold half of a surrogate pair, and a folder's name any bytes.
        (fresh / PAGE).write_bytes(page.encode("utf-8", "replace"))
    return {"page": str(target / PAGE), "pictures": [str(target / file) for file in titles], **facts}


def summarise(curves: Curves) -> dict[str, Any]:
    """Return the facts of a run as JSON values, without those of which nothing was logged.

    final_loss, also by task, is the mean of the last tenth of its values: a single one is mostly its batch.  Tokens and
    step_seconds_in_all are sums over the steps of the run as it stands, a repeated step once; compilation, evaluation and
    saving are no part of a step.
    """
    found: dict[str, Any] = {"steps": max(int(steps[-1]) for steps, _ in curves.values())}
    if "loss" in curves:
        found |= {"first_loss": float(curves["loss"][1][0]), "final_loss": _tail_mean(curves["loss"][1])}
    if "eval_loss" in curves:
        steps, values = curves["eval_loss"]
        best = int(values.argmin())
        found |= {"final_eval_loss": float(values[-1]), "best_eval_loss": float(values[best]), "best_step": int(steps[best])}
    tasks = {name.removeprefix("loss/"): own for name, (_, own) in sorted(curves.items()) if name.startswith("loss/")}
    if tasks:
        found["final_loss_by_task"] = {name: _tail_mean(values) for name, values in tasks.items()}
    for kind in ("branch", "prompt", "target"):
        if {f"{kind}_tokens_per_s", "step_seconds"} <= curves.keys():
            found[f"{kind}_tokens"] = _sum_over_time(curves[f"{kind}_tokens_per_s"], curves["step_seconds"])
    if "step_seconds" in curves:
        found["step_seconds_in_all"] = float(curves["step_seconds"][1].sum())
    if "memory_bytes" in curves:
        found["most_memory_bytes"] = int(curves["memory_bytes"][1].max())
    if "skipped" in curves:
        found["skipped"] = int(curves["skipped"][1][-1])
    return found


def _tail_mean(values: HostArray) -> float:
    return float(values[-max(len(values) // 10, 1) :].mean())


def _sum_over_time(rate: tuple[HostArray, HostArray], seconds: tuple[HostArray, HostArray]) -> int:
    """Return what a rate per second comes to, over the steps whose time is known."""
    time = dict(zip(*(each.tolist() for each in seconds), strict=True))
    return round(sum(value * time.get(step, 0.0) for step, value in zip(*(each.tolist() for each in rate), strict=True)))


def _config(path: AnyPath) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    text = read_text(path)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"cannot read {path}: {error}") from None
    except RecursionError:
        raise InputError(f"cannot read {path}: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no config: it is not a JSON object")
    return value


# ---------------------------------------------------------------------------------------------------------- the page

_STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #fff; --ink: #1d1f23; --soft: #6a6f78; --line: #e3e4e6; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14161a; --card: #1c1f24; --ink: #e8e9eb; --soft: #9aa0aa; --line: #31353c; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1.25rem 3rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.5rem; margin: 0 0 1.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: .75rem 0 0; color: var(--soft); font-size: .85rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .75rem; }
.facts div, figure, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.facts div { padding: .7rem .9rem; }
.facts span { display: block; color: var(--soft); font-size: .8rem; }
.facts b { font-size: 1.2rem; font-weight: 600; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: .75rem; margin: .75rem 0; }
figure { margin: 0; padding: .9rem; }
figure img { display: block; width: 100%; height: auto; }
section { padding: .9rem; overflow-x: auto; }
table { border-collapse: collapse; }
td, th { text-align: left; padding: .2rem 1.5rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; font-weight: normal; }
th { color: var(--soft); min-width: 11rem; }
"""


def _page(name: str, facts: Mapping[str, Any], pictures: Mapping[str, bytes], config: Mapping[str, Any]) -> str:
    title = html.escape(f"Training run {name}")
    cards = "".join(f"<div><span>{html.escape(label)}</span><b>{value}</b></div>" for label, value in _cards(facts))
    figures = "".join(_figure(label, content) for label, content in pictures.items())
    tasks = [(task, f"{loss:.4f}") for task, loss in facts.get("final_loss_by_task", {}).items()]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<div class="facts">{cards}</div>\n'
        "<p>Final losses are means over the last tenth of the steps. Time in steps leaves out compilation, evaluation and "
        "saving; tokens are those of the steps.</p>\n"
        f'<div class="side">\n{figures}</div>\n<div class="side">\n{_table("Final loss by task", tasks)}'
        f"{_table('Config', list(_flat(config)))}</div>\n</body>\n</html>\n"
    )


def _cards(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say what people look for first."""
    yield "steps", f"{facts['steps']:,}"
    if "final_loss" in facts:
        yield f"final loss, from {facts['first_loss']:.3f}", f"{facts['final_loss']:.3f}"
    if "best_eval_loss" in facts:
        yield "final evaluation loss", f"{facts['final_eval_loss']:.3f}"
        yield f"best, at step {facts['best_step']:,}", f"{facts['best_eval_loss']:.3f}"
    if "step_seconds_in_all" in facts:
        yield "time in steps", _duration(facts["step_seconds_in_all"])
    for kind in ("branch", "prompt", "target"):
        if f"{kind}_tokens" in facts:
            yield f"{kind} tokens", _short(facts[f"{kind}_tokens"])
    if "most_memory_bytes" in facts:
        yield "memory, at most", f"{facts['most_memory_bytes'] / 2**30:.1f} GiB"
    if facts.get("skipped"):
        yield "examples that did not fit", f"{facts['skipped']:,}"
    if facts.get("damaged_lines"):
        yield "damaged lines of metrics, left out", f"{facts['damaged_lines']:,}"


def _figure(title: str, picture: bytes) -> str:
    source = base64.b64encode(picture).decode()
    label = html.escape(title)
    return f'<figure><h2>{label}</h2><img alt="{label}" src="data:image/png;base64,{source}"></figure>\n'


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return ""
    lines = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<section><h2>{html.escape(title)}</h2><table>{lines}</table></section>\n"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Go through the values of a nested config by dotted name."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _short(count: float) -> str:
    """Write a count with three digits and a unit."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,.0f}"
