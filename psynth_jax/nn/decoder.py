"""The decoder: Llama 3.x, SmolLM2, Qwen2/2.5, Qwen3, Qwen3-MoE, Gemma 3 in one module.

    tokens [B, T] -> embedding -> L x (norm, attention, norm, MLP) -> norm -> hidden [B, T, D] -> logits [.., V]

Layers are stacked and scanned, or separate and looped over, as the device wants them: `layer_forms.py`.  Caches are only
read inside of them, as runs of slots.  The new tokens' keys and values come out stacked, and whoever called writes them to a
cache, once.  So no layer holds a cache that changes, and XLA has no reason to copy one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from psynth_jax.axes import Array, Hidden, PerRow, Tokens, letters_to_shape
from psynth_jax.cache import placement_on
from psynth_jax.config import DecoderConfig
from psynth_jax.errors import CheckpointError, listing
from psynth_jax.nn.adapter import Lora, PlacedLora
from psynth_jax.nn.attention import attention
from psynth_jax.nn.experts import feed_forward
from psynth_jax.nn.layer_forms import LayerWeights, SeparateLayers, StackedLayers
from psynth_jax.nn.layers import rms_norm, token_angles
from psynth_jax.nn.local import Layer, by_kind, context_of_layer, lay_out, of_layer, window_of
from psynth_jax.nn.ragged import RaggedRows
from psynth_jax.ops.branch_attention import Context, Implementation
from psynth_jax.sharding import FSDP, check_fits, constrain, moved, parameter_shardings, parameter_spec

LAYER = "layers."  # begins the names of layers' parameters
NEVER = -1e30  # a logit that leaves no probability; not infinite, which would make 0 times it no number


def parameter_letters(config: DecoderConfig) -> dict[str, str]:
    """Name -> axis letters of every parameter.  The one list that creation, loading and sharding go by.

    Projections are stored input first (`x @ w`), heads split; embedding and head both `[V, D]`.
    """
    layer = {
        "attention_norm": "L D",
        "q": "L D N H",
        "k": "L D K H",
        "v": "L D K H",
        "o": "L N H D",
        "mlp_norm": "L D",
    }
    if config.experts:
        layer |= {"router": "L D E", "gate": "L E D F", "up": "L E D F", "down": "L E F D"}
    else:
        layer |= {"gate": "L D F", "up": "L D F", "down": "L F D"}
    if config.norms_after:
        layer |= {"after_attention_norm": "L D", "after_mlp_norm": "L D"}
    if config.qkv_bias:
        layer |= {"q_bias": "L N H", "k_bias": "L K H", "v_bias": "L K H"}
    if config.o_bias:
        layer |= {"o_bias": "L D"}
    if config.qk_norm:
        layer |= {"q_norm": "L H", "k_norm": "L H"}
    letters = {"embedding": "V D", **{f"layers.{name}": axes for name, axes in layer.items()}, "final_norm": "D"}
    return letters if config.tied_head else letters | {"head": "V D"}


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter."""
    return {name: letters_to_shape(letters, config.sizes) for name, letters in parameter_letters(config).items()}


def _of_layers(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return what belongs to layers, by the names that it has within one."""
    return {name.removeprefix(LAYER): value for name, value in named.items() if name.startswith(LAYER)}


def numbers_per_token(config: DecoderConfig) -> int:
    """Count the numbers of all layers' matrices that a token is multiplied with; of experts, those that are chosen."""
    shapes = parameter_shapes(config)
    every = {name: math.prod(shapes[f"layers.{name}"]) for name in ("q", "k", "v", "o", "gate", "up", "down")}
    if not config.experts:
        return sum(every.values())
    mixture = sum(every[name] for name in ("gate", "up", "down"))
    router = math.prod(shapes["layers.router"])
    return sum(every.values()) - mixture + mixture // config.experts * config.experts_per_token + router


def shardings_of(config: DecoderConfig, mesh: Mesh) -> dict[str, NamedSharding]:
    """Name -> sharding of every parameter.  Raises `ConfigError` when the mesh does not fit the model."""
    check_fits(mesh, config.sizes)
    return parameter_shardings(parameter_letters(config), config.sizes, mesh)


def layer_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the parameters of one layer that are not fused."""
    return {name: shape[1:] for name, shape in _of_layers(parameter_shapes(config)).items()}


def layer_shardings(config: DecoderConfig, mesh: Mesh) -> dict[str, NamedSharding]:
    """Name -> sharding of the parameters of one separate layer."""
    letters = {name: axes.removeprefix("L ") for name, axes in _of_layers(parameter_letters(config)).items()}
    return parameter_shardings(letters, config.sizes, mesh)


def _positions(tokens: Tokens, position: PerRow, rows: RaggedRows | None) -> Array:
    """Return the position of every token, of rows `[B, T]` or of lists `[X, Z]`."""
    if rows is not None:
        return rows.position(position, *tokens.shape)
    return position[:, None] + jnp.arange(tokens.shape[1])


class Decoder(nnx.Module):
    """A decoder with its weights.  Use it inside `jax.jit` as an ordinary argument."""

    def __init__(
        self,
        config: DecoderConfig,
        parameters: Mapping[str, Array],
        mesh: Mesh | None = None,
        layers: SeparateLayers | None = None,
    ):
        """Take the arrays as they are; on a mesh, sharded as `shardings_of` says.

        layers: None: stacked, among the parameters; else the parameters are those of no layer.  Raises `CheckpointError`
        when names or shapes are not `parameter_shapes(config)`.
        """
        expected = parameter_shapes(config)
        if layers is not None:
            expected = {name: shape for name, shape in expected.items() if not name.startswith(LAYER)}
        wrong = [f"missing {name}" for name in expected if name not in parameters]
        wrong += [f"extra {name}" for name in parameters if name not in expected]
        wrong += [
            f"{name} has shape {list(parameters[name].shape)}, the config says {list(shape)}"
            for name, shape in expected.items()
            if name in parameters and tuple(parameters[name].shape) != shape
        ]
        if wrong:
            raise CheckpointError(f"parameters do not fit the config: {listing(wrong)}")
        self.config = config
        self.mesh = mesh
        self.embedding = nnx.Param(parameters["embedding"])
        self.layers: StackedLayers | SeparateLayers = layers or StackedLayers(_of_layers(parameters))
        self.final_norm = nnx.Param(parameters["final_norm"])
        self.head = None if config.tied_head else nnx.Param(parameters["head"])

    @classmethod
    def random(
        cls, config: DecoderConfig, seed: int = 0, dtype: jax.typing.DTypeLike = jnp.float32, mesh: Mesh | None = None
    ) -> Decoder:
        """Return a decoder with random weights: norms 1 + noise, all else Gaussian of width 0.02.

        On a mesh every device draws its own pieces; the numbers are those of a single device, up to rounding.  Raises
        `ConfigError` when the mesh does not fit the model.
        """

        def draw(key: Array, name: str) -> Array:
            noise = 0.02 * jax.random.normal(key, parameter_shapes(config)[name], jnp.float32)
            return (1 + noise if name.endswith("norm") and not config.norms_from_one else noise).astype(dtype)

        names = list(parameter_letters(config))
        keys = dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))
        if mesh is None:
            return cls(config, {name: draw(keys[name], name) for name in names})
        draw_all = jax.jit(
            lambda keys: {name: draw(keys[name], name) for name in names}, out_shardings=shardings_of(config, mesh)
        )
        return cls(config, draw_all(keys), mesh)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of weights, activations and caches."""
        return self.embedding[...].dtype

    @property
    def parameter_count(self) -> int:
        """How many numbers all parameters have together."""
        return sum(math.prod(shape) for shape in parameter_shapes(self.config).values())

    def on(self, mesh: Mesh | None) -> Decoder:
        """Return this decoder with its weights moved to a mesh (None: to the default device).

        Raises `ConfigError` when the mesh does not fit the model.
        """
        if mesh == self.mesh:
            return self
        if mesh is None:
            parameters = jax.device_put(self.parameters(), jax.devices()[0])
        else:
            shardings = shardings_of(self.config, mesh)
            parameters = {name: moved(x, shardings[name]) for name, x in self.parameters().items()}
        there = Decoder(self.config, parameters, mesh)
        return there if self.layers_are_stacked else there.separated()

    @property
    def layers_are_stacked(self) -> bool:
        """Whether layers are scanned, which training needs; else they are separate."""
        return isinstance(self.layers, StackedLayers)

    def separated(self) -> Decoder:
        """Return a decoder with separate layers; the weights of both exist while it is made."""
        stacked = _of_layers(self.parameters())

        def part(name: str, number: int) -> Array:
            return stacked[name][number]

        layers = SeparateLayers.of_parts(self.config, list(stacked), part, fuse=self.mesh is None)
        return Decoder(self.config, self.tables(), self.mesh, layers)

    def placed(self, lora: Lora) -> PlacedLora:
        """Return an adapter on the devices of the weights, in the form of the layers; of separate ones, one for each."""
        there = lora if self.mesh is None else lora.on(self.mesh, self.config)
        return there if self.layers_are_stacked else there.by_layer()

    def tables(self) -> dict[str, Array]:
        """Name -> array of the parameters that are of no layer."""
        named = {"embedding": self.embedding, "final_norm": self.final_norm, "head": self.head}
        return {name: value[...] for name, value in named.items() if value is not None}

    def parameters(self) -> dict[str, Array]:
        """Name -> array, the names of `parameter_letters`.  Of separate layers they are copies on the host."""
        layers = {LAYER + name: value for name, value in self.layers.stacked(layer_shapes(self.config)).items()}
        named = self.tables() | layers
        return {name: named[name] for name in parameter_letters(self.config)}

    def __call__(
        self,
        tokens: Tokens,
        position: PerRow,
        context: Context | None = None,
        lora: PlacedLora | None = None,
        scale: PerRow | None = None,
        *,
        row_axes: tuple[str, ...] = (),
        rows: RaggedRows | None = None,
        reach: int | None = None,
        remat: bool = False,
        implementation: Implementation = "auto",
    ) -> tuple[Hidden, Array, Array]:
        """Run `tokens [B, T]`; return normalised hidden states `[B, T, D]`, and new keys and values `[L, B, T, K, H]`.

        On a mesh K counts copies, as in the caches that they are written to.

        Args:
          position: `[B]` of the first token.
          context: what every row reads besides the new tokens; cos and sin as `nn.local.by_kind` has them.
          lora: adapter, as `placed` returns it; factors stacked over L are always taken.  None runs the base weights.
          scale: `[B]` how much of the adapter each row gets; None: 1.
          row_axes: mesh axes that B is sharded over.
          rows: the tokens are not rows `[B, T]` but the lists `[X, Z]` of these rows, and so are the hidden states; keys
            and values come as rows.  Without scale.
          reach: a bound of how far a query is from what it reads; None: there is none.
          remat: keep only every layer's input for the backward pass, and compute the layer again.

        Where rows are sharded over fsdp, as in training, each layer's weights are gathered when it is their turn; else
        the activations' D is sharded, and nothing of the size of a weight moves.
        """
        assert rows is None or scale is None
        config, mesh = self.config, self.mesh
        positions = _positions(tokens, position, rows)
        angles = by_kind(config, lambda rope: token_angles(rope, config.head_width, positions))
        placement = placement_on(mesh, config.kv_heads, row_axes)
        gathers = FSDP in row_axes
        if context is not None and tokens.shape[1] == 1 and rows is None and mesh is None:
            context = lay_out(config, context)

        def shard(x: Hidden) -> Hidden:
            return constrain(x, mesh, row_axes or None, None, None if gathers else FSDP)

        def run_layer(x: Hidden, layer: Layer, weights: LayerWeights, adapter: Lora | None) -> tuple[Hidden, Array, Array]:
            if gathers:
                weights = self._gathered(weights, LAYER)
            turned, window = of_layer(config, angles, layer), window_of(config, reach, layer)
            read_here = context_of_layer(config, context, layer)
            normed = rms_norm(x, weights["attention_norm"], config)
            read, k, v = attention(
                normed, weights, config, turned, read_here, layer.number, adapter, scale, implementation, mesh, placement,
                rows, window,
            )  # fmt: skip
            x = shard(x + self._after(read, weights.get("after_attention_norm")))
            normed = rms_norm(x, weights["mlp_norm"], config)
            fed = feed_forward(normed, weights, config, mesh, row_axes, gathers, adapter, scale)
            return shard(x + self._after(fed, weights.get("after_mlp_norm"))), k, v

        embedded = shard(self._embedded(tokens, gathers))
        x, k, v = self.layers.run(config, run_layer, embedded, lora, remat)
        return rms_norm(x, self.final_norm[...], config), k, v

    def _after(self, x: Hidden, norm: Array | None) -> Hidden:
        """Normalise what is added to the residual, in models that do so."""
        return x if norm is None else rms_norm(x, norm, self.config)

    def _embedded(self, tokens: Tokens, gathers: bool) -> Hidden:
        table = self.embedding[...]
        if gathers:
            table = self._gathered({"embedding": table})["embedding"]
        x = table[tokens]
        return x * jnp.asarray(self.config.width**0.5, x.dtype) if self.config.scaled_embedding else x

    def _gathered(self, weights: Mapping[str, Array], prefix: str = "") -> dict[str, Array]:
        """Return weights whole along fsdp, still cut over tensor; those of a layer come without L."""
        mesh, letters = self.mesh, parameter_letters(self.config)
        assert mesh is not None

        def gather(name: str, weight: Array) -> Array:
            spec = parameter_spec(letters[prefix + name].removeprefix("L "), self.config.sizes, mesh)
            return constrain(weight, mesh, *(None if axis == FSDP else axis for axis in spec))

        return {name: gather(name, weight) for name, weight in weights.items()}

    def logits(self, hidden: Array) -> Array:
        """Return float32 logits `[..., V]` of `hidden [..., D]`."""
        head = self.embedding if self.head is None else self.head
        # [V, D] x [D, rows]: at one row this form is up to four times faster on CPU than rows x [D, V].
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits = jnp.einsum("vd,bd->vb", head[...], flat, preferred_element_type=jnp.float32).T
        return logits.reshape(*hidden.shape[:-1], -1)
