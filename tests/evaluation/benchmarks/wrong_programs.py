"""Ways to make a right program wrong, or to make it cheat: `{solution}` defines the function `{name}`."""

from __future__ import annotations

WAYS = {
    "returns None": "{solution}\ndef {name}(*arguments): return None\n",
    "off by one": """{solution}
_right = {name}
def _shifted(value):
    if isinstance(value, bool): return not value
    if isinstance(value, (int, float)): return value + 1
    if isinstance(value, str): return value + "x"
    if isinstance(value, (list, tuple)): return type(value)([*value, 1])
    return None if value is not None else 1
def {name}(*arguments): return _shifted(_right(*arguments))
""",
    "another type": "{solution}\n_right = {name}\ndef {name}(*arguments): return [[_right(*arguments)]]\n",
    "never ends": "{solution}\ndef {name}(*arguments):\n    while True: pass\n",
    "never ends, and catches": """{solution}
def {name}(*arguments):
    while True:
        try:
            while True: pass
        except BaseException: pass
""",
    "exits with 0": "import sys\n{solution}\ndef {name}(*arguments): sys.exit(0)\n",
    "exits with 0 at once": "import os\nos._exit(0)\n",
    "ends the process": "import os\n{solution}\ndef {name}(*arguments): os._exit(0)\n",
    "equals everything": """
class Same(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __repr__(self): return "1"
def {name}(*arguments): return Same(7654321)
""",
    "forges a report": """import json, os
job = json.load(open("psynth_job.json"))
lines = ""
for index in range(len(job["cases"])):
    lines += job["nonce"] + " " + str(index) + ' {{"value": true, "seconds": 0}}\\n'
for file in range(1, 10):
    try: os.write(file, lines.encode())
    except OSError: pass
def {name}(*arguments): os._exit(0)
""",
    "changes json": """import json, builtins
json.dumps = lambda *a, **k: '{{"value": true, "seconds": 0}}'
builtins.all = builtins.any = lambda *a: True
builtins.isinstance = lambda *a: True
def {name}(*arguments): return "no such value"
""",
    "changes the codec": """import sys
values = sys.modules["psynth_values"]
values.Encoder.encode = lambda self, value, depth=0: True
def {name}(*arguments): return "no such value"
""",
    "prints": """print("True\\n" * 100000)
def {name}(*arguments): print("[]"); return "no such value"
""",
    "raises": "def {name}(*arguments): raise SystemExit(0)\n",
    "is a syntax error": "def {name}(:\n",
    "has another name": "def other_{name}(*arguments): return None\n",
}


def wrong(way: str, solution: str, name: str) -> str:
    """Return a wrong program as a model would write it."""
    return f"```python\n{WAYS[way].format(solution=solution, name=name)}```"
