"""Which tensor of a checkpoint is which parameter of ours: one rule table per family and format, used both ways.

A rule holds their tensor name (`{l}` stands for the layer), our flat parameter name, and a `Form`: the two axis orders,
spelled in the letters of `axes.py`, from which the conversion in either direction follows.

    Rule("layers.q", "model.layers.{l}.self_attn.q_proj.weight", Form("(N H) D", "D N H"))

Knows no file format and no tokenizer: a `TensorSource` says which tensors there are and reads one at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import ml_dtypes
import numpy as np

from psynth_jax.axes import HostArray
from psynth_jax.config import DecoderConfig
from psynth_jax.errors import CheckpointError, ConfigError, listing, shown
from psynth_jax.storage.paths import AnyPath

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


FLOAT32 = DTYPES["float32"]


def parameter_dtype(name: Any) -> np.dtype | None:
    """Return the NumPy dtype of a parameter dtype; None, as each is stored, stays None.

    It may be a name, or a dtype of NumPy or JAX, such as `jnp.bfloat16`.  Raises `ConfigError` for any but the three of
    `DTYPES`.
    """
    if name is None:
        return None
    known = name if isinstance(name, str) else _dtype_name(name)
    if known not in DTYPES:
        raise ConfigError(f"dtype {shown(name)} is not supported; use one of {', '.join(DTYPES)}")
    return DTYPES[known]


def _dtype_name(value: Any) -> str | None:
    """Return the name of a dtype, or of a type that stands for one; None for anything else."""
    if isinstance(value, bytes):  # NumPy would read it as a name
        return None
    try:
        return str(np.dtype(value).name)
    except (TypeError, ValueError, SyntaxError):
        return None


def widest(dtypes: Iterable[np.dtype]) -> np.dtype:
    """Return the dtype that holds numbers of all of these: the one that they share, or float32.

    (NumPy knows none for bfloat16 and float16 together.)
    """
    kinds = {np.dtype(dtype) for dtype in dtypes}
    return kinds.pop() if len(kinds) == 1 else FLOAT32


def axis_sizes(config: DecoderConfig) -> dict[str, int]:
    """Return letter -> size, with the two letters that only checkpoints need: r, the 2 halves of a head, and h = H / 2."""
    return {**config.sizes, "r": 2, "h": config.head_width // 2}


def _groups(spelling: str) -> list[list[str]]:
    """Split "(N H) D" into [["N", "H"], ["D"]]: one group per axis, its letters outermost first."""
    groups: list[list[str]] = []
    open_group: list[str] | None = None
    for token in spelling.replace("(", " ( ").replace(")", " ) ").split():
        if token == "(":
            open_group = []
        elif token == ")":
            groups.append(open_group or [])
            open_group = None
        elif open_group is None:
            groups.append([token])
        else:
            open_group.append(token)
    return groups


@dataclasses.dataclass(frozen=True)
class Form:
    """How one tensor is laid out on either side; letters in parentheses share one axis, the first being the outermost."""

    theirs: str
    ours: str

    def their_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape that the checkpoint stores."""
        return tuple(math.prod(sizes[letter] for letter in group) for group in _groups(self.theirs))

    def our_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape of our parameter, without the layer axis."""
        return tuple(math.prod(sizes[letter] for letter in group) for group in _groups(self.ours))

    def their_index(self, index: Sequence[slice], sizes: Mapping[str, int]) -> tuple[slice, ...]:
        """Return the piece of the checkpoint's tensor that becomes the piece `index` of ours (one slice per axis of ours).

        Only letters that are outermost on either side may be cut: N of "(N H) D", never H.
        """
        cut = {group[0]: part for group, part in zip(_groups(self.ours), index, strict=True)}
        pieces = []
        for group in _groups(self.theirs):
            inner = math.prod(sizes[letter] for letter in group[1:])
            first, stop, _ = cut.get(group[0], slice(None)).indices(sizes[group[0]])
            pieces.append(slice(first * inner, stop * inner))
        return tuple(pieces)

    def their_places(self, places: Sequence[HostArray], sizes: Mapping[str, int]) -> tuple[HostArray, ...]:
        """Return where the checkpoint's tensor has the elements of ours at `places`, an index array for each axis."""
        by_letter: dict[str, HostArray] = {}
        for group, place in zip(_groups(self.ours), places, strict=True):
            letters = np.unravel_index(place, [sizes[letter] for letter in group])
            by_letter.update(zip(group, letters, strict=True))
        theirs = []
        for group in _groups(self.theirs):
            letters = tuple(by_letter[letter] for letter in group)
            theirs.append(np.ravel_multi_index(letters, [sizes[letter] for letter in group]))
        return tuple(theirs)

    def piece_sizes(self, index: Sequence[slice], sizes: Mapping[str, int]) -> dict[str, int]:
        """Return letter -> size inside of the piece `index` of ours."""
        cut = zip(_groups(self.ours), index, strict=True)
        return {**sizes, **{group[0]: len(range(*part.indices(sizes[group[0]]))) for group, part in cut if len(group) == 1}}

    def to_ours(self, tensor: HostArray, sizes: Mapping[str, int]) -> HostArray:
        """Convert a checkpoint tensor to our layout (a view where NumPy can make one)."""
        return _relayout(tensor, self.theirs, self.ours, sizes)

    def to_theirs(self, tensor: HostArray, sizes: Mapping[str, int]) -> HostArray:
        """Convert one layer of our parameter to the checkpoint's layout; the exact inverse of `to_ours`."""
        return _relayout(tensor, self.ours, self.theirs, sizes)


def _relayout(tensor: HostArray, source: str, target: str, sizes: Mapping[str, int]) -> HostArray:
    before = [letter for group in _groups(source) for letter in group]
    after = [letter for group in _groups(target) for letter in group]
    split = tensor.reshape([sizes[letter] for letter in before])
    moved = split.transpose([before.index(letter) for letter in after])
    return moved.reshape([math.prod(sizes[letter] for letter in group) for group in _groups(target)])


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor <-> one parameter (or one layer of it).  `when` names the bool config field that the rule depends on."""

    ours: str
    theirs: str
    form: Form
    when: Literal["qkv_bias", "o_bias", "qk_norm", "not tied_head", ""] = ""

    def applies(self, config: DecoderConfig) -> bool:
        """Say whether a model of this config has the tensor."""
        if not self.when:
            return True
        field = self.when.removeprefix("not ")
        return bool(getattr(config, field)) != self.when.startswith("not ")

    def stacked(self, config: DecoderConfig) -> tuple[int, ...]:
        """Return the sizes of our leading axes that are separate tensors in the checkpoint: layers, and experts."""
        both = (("{l}", config.layers), ("{e}", config.experts))
        return tuple(size for mark, size in both if mark in self.theirs)

    def their_names(self, config: DecoderConfig) -> dict[tuple[int, ...], str]:
        """Return the place in our stack -> the name, of every tensor; the one place is () where nothing is stacked."""
        return {
            place: self.theirs.format(l=place[0] if place else 0, e=place[-1] if place else 0)
            for place in np.ndindex(*self.stacked(config))
        }

    def our_shape(self, config: DecoderConfig) -> tuple[int, ...]:
        """Return the shape of the whole parameter, the stacked axes included."""
        return (*self.stacked(config), *self.form.our_shape(axis_sizes(config)))


_VECTOR = Form("D", "D")
_HEAD_VECTOR = Form("H", "H")
_TABLE = Form("V D", "V D")
_O_WEIGHT, _O_BIAS = Form("D (N H)", "N H D"), Form("D", "D")
_IN_WEIGHT, _OUT_WEIGHT = Form("F D", "D F"), Form("D F", "F D")


def _table(
    names: Mapping[str, str],
    q: Form,
    k: Form,
    q_bias: Form,
    k_bias: Form,
    experts: Form | None = None,
    experts_out: Form | None = None,
) -> tuple[Rule, ...]:
    """Build a rule for every parameter that `names` (ours -> theirs) has.

    q and k may be stored permuted, and all experts of a layer as one tensor.
    """
    every = (
        ("embedding", _TABLE, ""),
        ("layers.attention_norm", _VECTOR, ""),
        ("layers.q", q, ""),
        ("layers.k", k, ""),
        ("layers.v", Form("(K H) D", "D K H"), ""),
        ("layers.o", _O_WEIGHT, ""),
        ("layers.q_bias", q_bias, "qkv_bias"),
        ("layers.k_bias", k_bias, "qkv_bias"),
        ("layers.v_bias", Form("(K H)", "K H"), "qkv_bias"),
        ("layers.o_bias", _O_BIAS, "o_bias"),
        ("layers.q_norm", _HEAD_VECTOR, "qk_norm"),
        ("layers.k_norm", _HEAD_VECTOR, "qk_norm"),
        ("layers.mlp_norm", _VECTOR, ""),
        ("layers.after_attention_norm", _VECTOR, ""),
        ("layers.after_mlp_norm", _VECTOR, ""),
        ("layers.router", Form("E D", "D E"), ""),
        ("layers.gate", experts or _IN_WEIGHT, ""),
        ("layers.up", experts or _IN_WEIGHT, ""),
        ("layers.down", experts_out or _OUT_WEIGHT, ""),
        ("final_norm", _VECTOR, ""),
        ("head", _TABLE, "not tied_head"),
    )
    return tuple(Rule(ours, names[ours], form, when) for ours, form, when in every if ours in names)  # type: ignore[arg-type]


_STRAIGHT = {
    "q": Form("(N H) D", "D N H"),
    "k": Form("(K H) D", "D K H"),
    "q_bias": Form("(N H)", "N H"),
    "k_bias": Form("(K H)", "K H"),
}
# GGUF files of architecture llama store the two halves of every q and k head interleaved: row (h, r) for entry (r, h).
_INTERLEAVED = {
    "q": Form("(N h r) D", "D N (r h)"),
    "k": Form("(K h r) D", "D K (r h)"),
    "q_bias": Form("(N h r)", "N (r h)"),
    "k_bias": Form("(K h r)", "K (r h)"),
}

_HF = {
    "embedding": "model.embed_tokens.weight",
    "layers.attention_norm": "model.layers.{l}.input_layernorm.weight",
    "layers.q": "model.layers.{l}.self_attn.q_proj.weight",
    "layers.k": "model.layers.{l}.self_attn.k_proj.weight",
    "layers.v": "model.layers.{l}.self_attn.v_proj.weight",
    "layers.o": "model.layers.{l}.self_attn.o_proj.weight",
    "layers.mlp_norm": "model.layers.{l}.post_attention_layernorm.weight",
    "layers.gate": "model.layers.{l}.mlp.gate_proj.weight",
    "layers.up": "model.layers.{l}.mlp.up_proj.weight",
    "layers.down": "model.layers.{l}.mlp.down_proj.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}
_HF_QKV_BIAS = {f"layers.{x}_bias": f"model.layers.{{l}}.self_attn.{x}_proj.bias" for x in "qkv"}
_HF_O_BIAS = {"layers.o_bias": "model.layers.{l}.self_attn.o_proj.bias"}
_HF_QK_NORM = {f"layers.{x}_norm": f"model.layers.{{l}}.self_attn.{x}_norm.weight" for x in "qk"}

_HF_EXPERTS = {
    "layers.router": "model.layers.{l}.mlp.gate.weight",
    **{f"layers.{name}": f"model.layers.{{l}}.mlp.experts.{{e}}.{name}_proj.weight" for name in ("gate", "up", "down")},
}

_HF_GEMMA_NORMS = {
    "layers.after_attention_norm": "model.layers.{l}.post_attention_layernorm.weight",
    "layers.mlp_norm": "model.layers.{l}.pre_feedforward_layernorm.weight",
    "layers.after_mlp_norm": "model.layers.{l}.post_feedforward_layernorm.weight",
}

_GGUF = {
    "embedding": "token_embd.weight",
    "layers.attention_norm": "blk.{l}.attn_norm.weight",
    "layers.q": "blk.{l}.attn_q.weight",
    "layers.k": "blk.{l}.attn_k.weight",
    "layers.v": "blk.{l}.attn_v.weight",
    "layers.o": "blk.{l}.attn_output.weight",
    "layers.mlp_norm": "blk.{l}.ffn_norm.weight",
    "layers.gate": "blk.{l}.ffn_gate.weight",
    "layers.up": "blk.{l}.ffn_up.weight",
    "layers.down": "blk.{l}.ffn_down.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
}
_GGUF_QKV_BIAS = {f"layers.{x}_bias": f"blk.{{l}}.attn_{x}.bias" for x in "qkv"}
_GGUF_O_BIAS = {"layers.o_bias": "blk.{l}.attn_output.bias"}
_GGUF_QK_NORM = {f"layers.{x}_norm": f"blk.{{l}}.attn_{x}_norm.weight" for x in "qk"}

_GGUF_EXPERTS = {
    "layers.router": "blk.{l}.ffn_gate_inp.weight",
    **{f"layers.{name}": f"blk.{{l}}.ffn_{name}_exps.weight" for name in ("gate", "up", "down")},
}
_GGUF_GEMMA_NORMS = {
    "layers.after_attention_norm": "blk.{l}.post_attention_norm.weight",
    "layers.after_mlp_norm": "blk.{l}.post_ffw_norm.weight",
}
_STACKED_EXPERTS = {"experts": Form("E F D", "E D F"), "experts_out": Form("E D F", "E F D")}

HF_RULES: dict[str, tuple[Rule, ...]] = {
    "llama": _table({**_HF, **_HF_QKV_BIAS, **_HF_O_BIAS}, **_STRAIGHT),
    "qwen2": _table({**_HF, **_HF_QKV_BIAS}, **_STRAIGHT),
    "qwen3": _table({**_HF, **_HF_QKV_BIAS, **_HF_O_BIAS, **_HF_QK_NORM}, **_STRAIGHT),
    "qwen3_moe": _table({**_HF, **_HF_QKV_BIAS, **_HF_O_BIAS, **_HF_QK_NORM, **_HF_EXPERTS}, **_STRAIGHT),
    "gemma3_text": _table({**_HF, **_HF_QKV_BIAS, **_HF_O_BIAS, **_HF_QK_NORM, **_HF_GEMMA_NORMS}, **_STRAIGHT),
}
GGUF_RULES: dict[str, tuple[Rule, ...]] = {
    "llama": _table({**_GGUF, **_GGUF_QKV_BIAS, **_GGUF_O_BIAS}, **_INTERLEAVED),
    "qwen2": _table({**_GGUF, **_GGUF_QKV_BIAS}, **_STRAIGHT),
    "qwen3": _table({**_GGUF, **_GGUF_QKV_BIAS, **_GGUF_O_BIAS, **_GGUF_QK_NORM}, **_STRAIGHT),
    "qwen3_moe": _table({**_GGUF, **_GGUF_QK_NORM, **_GGUF_EXPERTS}, **_STRAIGHT, **_STACKED_EXPERTS),
    "gemma3_text": _table({**_GGUF, **_GGUF_QK_NORM, **_GGUF_GEMMA_NORMS}, **_STRAIGHT),
}


def hf_rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """Return the rules for Hugging Face tensor names that apply to this config."""
    return tuple(rule for rule in HF_RULES[config.family] if rule.applies(config))


def gguf_rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """Return the rules for GGUF tensor names that apply to this config."""
    return tuple(rule for rule in GGUF_RULES[config.family] if rule.applies(config))


class TensorSource(Protocol):
    """A checkpoint, whatever its format.

    path: its file or directory.  One may also have `pick(name, places)`, which reads single elements faster than row by row.
    """

    @property
    def path(self) -> AnyPath:
        """Return its file or directory."""
        ...

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return name -> shape of every tensor, without reading any."""
        ...

    def read(self, name: str, index: tuple[slice, ...] = ()) -> HostArray:
        """Read one tensor, or a piece of it: float32, bfloat16 or float16."""
        ...

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype that `read` returns it in."""
        ...


def find_problems(
    rules: Sequence[Rule],
    config: DecoderConfig,
    shapes: Mapping[str, tuple[int, ...]],
    ignored: frozenset[str] = frozenset(),
) -> list[str]:
    """List every missing, misshaped and extra tensor, in that order; tensors named in `ignored` may be there or not.

    Where the names are right but for a prefix, that comes first, and then what would still not fit.
    """
    count = sum(math.prod(rule.stacked(config)) for rule in rules)
    if count > 100 * (len(shapes) + 100):  # so many names are not even worth to be made
        return [f"the config describes {count} tensors, and there are {len(shapes)}"]
    expected: dict[str, tuple[int, ...]] = {}
    for rule in rules:
        shape = rule.form.their_shape(axis_sizes(config))
        expected.update(dict.fromkeys(rule.their_names(config).values(), shape))
    renaming = _renaming(expected, shapes)
    if renaming is None:
        return _differences(expected, shapes, ignored)
    said, renamed = renaming
    return [said, *_differences(expected, renamed, ignored)]


def _differences(
    expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], ignored: frozenset[str]
) -> list[str]:
    missing, misshaped = [], []
    for name, shape in expected.items():
        if name not in shapes:
            missing.append(f"missing {name} {list(shape)}")
        elif tuple(shapes[name]) != shape:
            misshaped.append(f"{name} has shape {list(shapes[name])}, expected {list(shape)}")
    extra = [f"extra {name} {list(shape)}" for name, shape in shapes.items() if name not in expected and name not in ignored]
    return missing + misshaped + extra


def _renaming(
    expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, dict[str, tuple[int, ...]]] | None:
    """Return what to say of names that are right but for one part, and the shapes under the right names; None: they are not.

    A wrapper puts its own name before all others, as in "module.model.norm.weight" or "model.language_model.norm.weight";
    a model without its head lacks the first part, as in "norm.weight".
    """
    most = (len(expected) + 1) // 2
    if not expected or sum(name in shapes for name in expected) >= most:
        return None
    probe = max(expected, key=lambda name: name.count("."))
    for name in shapes:
        part = _surplus(name, probe)
        if part is None:
            continue
        renamed = {other.replace(part, "", 1): shape for other, shape in shapes.items()}
        if sum(right in renamed for right in expected) >= most:
            return f"its names have a part too much, as in {name}: they fit without {part!r}", renamed
    first = probe.split(".", maxsplit=1)[0] + "."
    if probe.removeprefix(first) in shapes:
        return f"its names lack {first!r} before them", {f"{first}{other}": shape for other, shape in shapes.items()}
    return None


def _surplus(name: str, right: str) -> str | None:
    """Return the dotted part of a name without which it would be `right`; None: it would not."""
    parts, wanted = name.split("."), len(right.split("."))
    surplus = len(parts) - wanted
    if surplus <= 0:
        return None
    for first in range(wanted):
        if ".".join(parts[:first] + parts[first + surplus :]) == right:
            return ".".join(parts[first : first + surplus]) + "."
    return None


def refuse_problems(where: object, problems: Sequence[str]) -> None:
    """Raise `CheckpointError` with some problems and their number in one line, if there are any."""
    if not problems:
        return
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    # What is missing comes first, what is extra last: a long list shows some of both.
    told = [*problems[:6], *problems[-2:], *problems[6:-2]] if len(problems) > 8 else problems
    raise CheckpointError(f"{where} does not fit its config ({count}): {listing(told)}")
