"""The program in an answer: a block between fences, as Markdown writes code.

```python        the tag may be python, py or python3 in any case, or, if no block has one
def f(): ...     of them, there may be none
```              the last fence may be missing at the end of the text
"""

from __future__ import annotations

import re

from psynth_jax.evaluation.benchmarks.thinking import after_thinking

# What a line begins with is taken for good (`+`): to try each shorter fence would take all day.
_BLOCK = re.compile(
    r"^[ \t]*+(?P<fence>`{3,}+|~{3,}+)[ \t]*+(?P<tag>[\w+-]*+)[^\n]*+\n"
    r"(?P<code>.*?)"
    r"(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE,
)
_PUBLISHED = re.compile(r"```python(.*?)```", re.DOTALL | re.IGNORECASE)
_PYTHON = frozenset({"python", "py", "python3"})


def final_program(written: str, entry_point: str) -> str:
    """Return the last Python block that defines `entry_point`, else the last one; "" for none."""
    blocks = list(_BLOCK.finditer(after_thinking(written)))
    tagged = [block["code"] for block in blocks if block["tag"].lower() in _PYTHON]
    untagged = [block["code"] for block in blocks if not block["tag"]]
    programs = tagged or untagged
    # No \s, which takes new lines, too: of a run of empty lines each would begin a search.
    name = re.escape(entry_point)
    definition = re.compile(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{name}\b", re.MULTILINE)
    defining = [code for code in programs if definition.search(code)]
    for found in (defining, programs):
        if found:
            return found[-1].rstrip() + "\n" if found[-1].strip() else ""
    return ""


def published_program(written: str) -> str:
    """Return the last block with the tag python, as the published rule finds it; "" for none."""
    blocks = _PUBLISHED.findall(after_thinking(written))
    return blocks[-1].strip() if blocks else ""
