"""DeBERTa-v2 and -v3, mDeBERTa: attention from content and relative place, disentangled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from xdistil_jax.models.functional import dropout
from xdistil_jax.models.layers import (
    ACTIVATIONS,
    attend,
    dense,
    dense_shapes,
    norm_shapes,
    normalize,
    split_heads,
)
from xdistil_jax.models.stack import LayerStack, Ran
from xdistil_jax.types import Params


@dataclass(frozen=True)
class DebertaSpec:
    """Sizes and choices; the defaults are those of version 3.

    ``buckets`` > 0 counts distances logarithmically from half that number on, up to ``farthest``;
    0 counts them as they are. ``kinds`` of scores beside content on content: content to place
    ("c2p"), place to content ("p2c"); ``shared`` takes their products from those of the content.
    ``convolution`` is the width of the one behind the first layer (0: none, as in version 3), and
    ``positions_added`` says whether the embedding knows places, too. The other fields are
    ``EncoderSpec``'s.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    feed_forward: int
    positions: int = 512
    token_types: int = 0
    classes: int = 7
    dropout: float = 0.1
    norm_epsilon: float = 1e-7
    activation: str = "gelu"
    initializer: float = 0.02
    stacked: bool = True
    outputs: tuple[str, ...] | None = None
    columns: tuple[tuple[int, ...], ...] = ()
    family: str = "deberta-v2"
    embedding_width: int = 0
    positions_added: bool = False
    relative: bool = True
    buckets: int = 256
    farthest: int = 512
    kinds: tuple[str, ...] = ("p2c", "c2p")
    shared: bool = True
    normalized_places: bool = True
    convolution: int = 0
    convolution_groups: int = 1
    convolution_activation: str = "tanh"
    separator: int = -1

    @property
    def longest(self) -> int:
        """Pieces of the longest row."""
        return self.positions

    @property
    def hidden_names(self) -> tuple[str, ...]:
        """embedding, layer_1 … layer_L: bottom to top."""
        return ("embedding", *(f"layer_{number + 1}" for number in range(self.layers)))

    @property
    def groups(self) -> tuple[str, ...]:
        """Top to bottom; single layers only where they are leaves of their own."""
        middle = ("layers",) if self.stacked else self.hidden_names[:0:-1]
        between = ("convolution",) * bool(self.convolution) + ("relative",) * self.relative
        return ("head", *middle, *between, "embed")

    @property
    def span(self) -> int:
        """Rows of the table of places, on either side."""
        return self.buckets or self.farthest

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        return Deberta(self, rngs)


def parameter_shapes(spec: DebertaSpec) -> dict[str, Any]:
    """The nested dict of the parameters' shapes."""
    D, F, E = spec.width, spec.feed_forward, spec.embedding_width or spec.width
    own = ["query", "key", "value", "output"]
    if spec.relative and not spec.shared:
        own += [{"c2p": "place_key", "p2c": "place_query"}[kind] for kind in sorted(spec.kinds)]

    def layer(lead: tuple[int, ...] = ()) -> dict[str, Any]:
        up, down = dense_shapes(D, F, lead), dense_shapes(F, D, lead)
        products = {name: dense_shapes(D, D, lead) for name in own}
        norm = norm_shapes(D, lead)
        return {
            "attention": {**products, "norm": norm},
            "feed_forward": {"up": up, "down": down, "norm": norm},
        }

    embed: dict[str, Any] = {"table": (spec.vocab_size, E), "norm": norm_shapes(D)}
    if spec.positions_added:
        embed["positions"] = (spec.positions, E)
    if spec.token_types:
        embed["types"] = (spec.token_types, E)
    if E != D:
        embed["projection"] = {"kernel": (E, D)}
    shapes: dict[str, Any] = {"embed": embed, "head": dense_shapes(D, spec.classes)}
    if spec.relative:
        shapes["relative"] = {"table": (2 * spec.span, D)}
        if spec.normalized_places:
            shapes["relative"]["norm"] = norm_shapes(D)
    if spec.convolution:
        kernel = (spec.convolution, D // spec.convolution_groups, D)
        shapes["convolution"] = {"kernel": kernel, "bias": (D,), "norm": norm_shapes(D)}
    if spec.stacked:
        return {**shapes, "layers": layer((spec.layers,))}
    return {**shapes, **{name: layer() for name in spec.hidden_names[1:]}}


class Deberta(LayerStack):
    """The parameters of ``DebertaSpec``; the arithmetic is in the functions below."""

    def __init__(self, spec: DebertaSpec, rngs: nnx.Rngs) -> None:
        super().__init__(spec, parameter_shapes(spec), rngs)

    def embed_pieces(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        token_types: Int[Array, "B T"] | None,
        real: Bool[Array, "B T"],
        dtype: DTypeLike,
        key: Array | None,
    ) -> Float[Array, "B T D"]:
        return _embed(self.spec, params, tokens, token_types, real, dtype)

    def run_layers(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        real: Bool[Array, "B T"],
        keys: Array | None,
    ) -> Ran:
        return _run_layers(self.spec, params, x, real, keys), {}


def _embed(
    spec: DebertaSpec,
    params: Params,
    tokens: Int[Array, "B T"],
    token_types: Int[Array, "B T"] | None,
    real: Bool[Array, "B T"],
    dtype: DTypeLike,
) -> Float[Array, "B T D"]:
    x = params["table"][tokens]
    if spec.positions_added:
        x = x + params["positions"][None, : tokens.shape[1]]
    if spec.token_types:
        types = params["types"]
        single = token_types is None or spec.token_types == 1
        x = x + (types[None, :1] if single else types[token_types])
    x = dense(params["projection"], x) if "projection" in params else x
    x = normalize(params["norm"], x, spec.norm_epsilon).astype(dtype)
    return jnp.where(real[..., None], x, 0)


def places(spec: DebertaSpec, length: int) -> Int[Array, "T T"]:
    """Row of the table of places for each (query, key): their distance, in buckets."""
    distance = jnp.arange(length)[:, None] - jnp.arange(length)[None]
    if spec.buckets:
        middle = spec.buckets // 2
        far = jnp.maximum(jnp.abs(distance), middle).astype(jnp.float32)
        share = jnp.log(far / middle) / jnp.log((spec.farthest - 1) / middle)
        bucket = (jnp.ceil(share * (middle - 1)) + middle).astype(jnp.int32)
        near = jnp.abs(distance) <= middle
        distance = jnp.where(near, distance, bucket * jnp.sign(distance))
    return jnp.clip(distance + spec.span, 0, 2 * spec.span - 1)


def _run_layers(
    spec: DebertaSpec,
    params: Params,
    embedded: Float[Array, "B T D"],
    real: Bool[Array, "B T"],
    keys: Array | None,
) -> dict[str, Float[Array, "B T D"]]:
    """Hidden state of every layer; the first stands alone where a convolution follows it."""
    names, inner = spec.hidden_names[1:], None if keys is None else keys[1:-1]
    table = None
    if spec.relative:
        table = params["relative"]["table"]
        if spec.normalized_places:
            table = normalize(params["relative"]["norm"], table[None], spec.norm_epsilon)[0]
        table = table.astype(embedded.dtype)

    def step(x: Array, layer: tuple[Params, Array | None]) -> tuple[Array, Array]:
        y = _layer(spec, layer[0], x, real, table, layer[1])
        return y, y

    def one(number: int) -> tuple[Params, Array | None]:
        own = params["layers"] if spec.stacked else params[names[number]]
        own = jax.tree.map(lambda leaf: leaf[number], own) if spec.stacked else own
        return own, None if inner is None else inner[number]

    x, hidden, alone = embedded, {}, 1 if spec.convolution else 0
    for number in range(alone if spec.stacked else spec.layers):
        x, _ = step(x, one(number))
        if number == 0 and spec.convolution:
            x = _convolve(spec, params["convolution"], embedded, x, real)
        hidden[names[number]] = x
    if spec.stacked and alone < spec.layers:
        rest = jax.tree.map(lambda leaf: leaf[alone:], (params["layers"], inner))
        _, states = jax.lax.scan(step, x, rest)
        hidden.update(zip(names[alone:], states, strict=True))
    return hidden


def _layer(
    spec: DebertaSpec,
    params: Params,
    x: Float[Array, "B T D"],
    real: Bool[Array, "B T"],
    table: Float[Array, "P D"] | None,
    key: Array | None,
) -> Float[Array, "B T D"]:
    keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
    attended = _attend(spec, params["attention"], x, real, table, keys[0])
    x = x + dropout(attended, spec.dropout, keys[1])
    x = normalize(params["attention"]["norm"], x, spec.norm_epsilon)
    params = params["feed_forward"]
    y = dense(params["down"], ACTIVATIONS[spec.activation](dense(params["up"], x)))
    x = x + dropout(y, spec.dropout, keys[2])
    return normalize(params["norm"], x, spec.norm_epsilon)


def _attend(
    spec: DebertaSpec,
    params: Params,
    x: Float[Array, "B T D"],
    real: Bool[Array, "B T"],
    table: Float[Array, "P D"] | None,
    key: Array | None,
) -> Float[Array, "B T D"]:
    """qᵀk + qᵀ·place_key(δ) + kᵀ·place_query(δ), all over √(d·terms); δ is query minus key."""
    query, keys, values = (
        split_heads(dense(params[name], x), spec.heads) for name in ("query", "key", "value")
    )
    kinds = spec.kinds if spec.relative else ()
    scale = (spec.width // spec.heads * (1 + len(spec.kinds))) ** -0.5
    bias = None
    if kinds:
        index = places(spec, x.shape[1])
        terms = []
        for kind, content, name in (("c2p", query, "key"), ("p2c", keys, "query")):
            if kind not in kinds:
                continue
            own = params[name if spec.shared else f"place_{name}"]
            place = split_heads(dense(own, table[None]), spec.heads)
            scores = jnp.matmul(content * scale, place.mT, preferred_element_type=jnp.float32)
            # Rows of p2c are keys: there the distance is read from the other end.
            at = index if kind == "c2p" else index.T
            taken = jnp.take_along_axis(scores, at[None, None], axis=-1)
            terms.append(taken if kind == "c2p" else taken.mT)
        bias = sum(terms[1:], terms[0])
    allowed = real[:, None, None]
    joined = attend(
        query, keys, values, allowed, scale=scale, bias=bias, rate=spec.dropout, rng=key
    )
    return dense(params["output"], joined)


def _convolve(
    spec: DebertaSpec,
    params: Mapping[str, Any],
    embedded: Float[Array, "B T D"],
    x: Float[Array, "B T D"],
    real: Bool[Array, "B T"],
) -> Float[Array, "B T D"]:
    """The first layer's output and, beside it, a convolution over the embedding (version 2)."""
    kernel = params["kernel"].astype(embedded.dtype)
    around = (spec.convolution - 1) // 2
    y = jax.lax.conv_general_dilated(
        embedded, kernel, (1,), [(around, around)], dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=spec.convolution_groups,
    )  # fmt: skip
    y = jnp.where(real[..., None], y + params["bias"].astype(y.dtype)[None, None], 0)
    y = ACTIVATIONS[spec.convolution_activation](y)
    x = normalize(params["norm"], x + y, spec.norm_epsilon)
    return jnp.where(real[..., None], x, 0)
