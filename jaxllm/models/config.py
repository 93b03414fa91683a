"""The model config, its parameter count and its FLOPs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

import gin

from jaxllm.configs import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    checked,
    configurable,
)
from jaxllm.errors import UserError

ParamDtype = Literal["float32", "bfloat16", "float16"]
Remat = Literal["none", "minimal", "attention", "residual", "full"]
REMAT_POLICIES: tuple[Remat, ...] = get_args(Remat)
BIASES = ("qkv", "attention_output", "mlp")
MAX_LAYERS = 10_000  # names are made for each
# Fields that may change during a run: they affect how a model is run, not what it computes.
EXECUTION_FIELDS = frozenset(
    {"dtype", "param_dtype", "quantization", "init_stddev", "remat", "scan_layers", "max_length"}
)


@gin.configurable
def of_size(size: str, fields: tuple[str, ...], sizes: Mapping[str, tuple[Any, ...]]) -> Any:
    """Look up a field of ModelConfig in a family's table of sizes (gin/models/sizes.gin).

    In gin `@num_layers/of_size()`: the scope names the field. `size` is a key of `sizes`, as 7b;
    `fields` are the names of its columns. Fields without a column keep their default.
    """
    if size not in sizes:
        raise UserError(f"SIZE = {size!r}: must be one of {', '.join(sizes)}")
    field = gin.current_scope_str()
    row = dict(zip(fields, sizes[size], strict=True))
    return row[field] if field in row else ModelConfig.__dataclass_fields__[field].default


@checked
@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Extension of RoPE beyond the context length of pretraining.

    Attributes:
      kind: `linear` divides all frequencies by factor (Chen et al. 2023); `llama3` only low ones
        (Llama team 2024); `yarn` low ones, and multiplies queries and keys by attention_factor
        (Peng et al. 2023).
      factor: ratio of the extended context length to original_length.
      original_length: context length before the extension, in tokens; unused by `linear`.
      low_freq_factor: `llama3` divides frequencies with wavelengths above original_length /
        low_freq_factor by the full factor.
      high_freq_factor: `llama3` leaves frequencies with wavelengths below original_length /
        high_freq_factor unchanged.
      beta_slow: `yarn` divides frequencies with fewer rotations per original_length by the full
        factor.
      beta_fast: `yarn` leaves frequencies with more rotations per original_length unchanged.
      attention_factor: multiplier of queries and keys in `yarn`; None means 0.1 ln(factor) + 1.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: PositiveFloat
    original_length: PositiveInt = 2048
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    beta_slow: PositiveFloat = 1.0
    beta_fast: PositiveFloat = 32.0
    attention_factor: PositiveFloat | None = None


@checked
@dataclasses.dataclass(frozen=True)
class Quirks:
    """Options specific to one published family, rarely wanted in a new model.

    Attributes:
      rotary_fraction: fraction of each head's dimensions, the first ones, with RoPE (GPT-NeoX).
      rope_scaling: see `RopeScaling`; None means unscaled.
      position_offset: index of position 0 in the learned position embeddings (OPT: 2).
      embedding_dim: dimension of the embedding and the output head, with projections to and from
        embed_dim (OPT 350M); None means embed_dim, without projections.
      final_norm: whether a norm follows the last block (OPT 350M: none).
      normalize_lm_head: whether output head vectors are scaled to unit length (Baichuan 2).
      attention_scale: scale of the attention scores (GPT-Neo: 1); None means head_dim ** -0.5.
      clip_qkv: queries, keys and values are clipped to [-clip_qkv, clip_qkv] (OLMo 1.7); None
        means no clipping.
    """

    rotary_fraction: PositiveFloat = 1.0
    rope_scaling: RopeScaling | None = None
    position_offset: NonNegativeInt = 0
    embedding_dim: PositiveInt | None = None
    final_norm: bool = True
    normalize_lm_head: bool = False
    attention_scale: PositiveFloat | None = None
    clip_qkv: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if self.rotary_fraction > 1:
            raise UserError(f"Quirks.rotary_fraction = {self.rotary_fraction}: must be at most 1")


@configurable
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. The defaults are LLaMA 7B's: RMSNorm, RoPE, SwiGLU, no biases.

    Attributes:
      vocab_size: number of tokens. A run that does not set it takes the vocabulary's size, padded
        to a multiple of 64.
      num_layers: number of transformer blocks.
      embed_dim: dimension of the residual stream.
      mlp_dim: hidden dimension of the MLP.
      num_heads: number of query heads.
      num_kv_heads: number of key and value heads, a divisor of num_heads; None means num_heads.
      head_dim: dimension of an attention head; None means embed_dim / num_heads.
      max_length: context length in tokens.
      position_embedding: `rotary` (RoPE), `learned` (max_length vectors, added to the embeddings)
        or `alibi` (attention scores decrease linearly with distance).
      rope_theta: base of the RoPE frequencies.
      norm: `rms` (RMSNorm), `layer` (LayerNorm with scale and bias) or `layer_plain` (LayerNorm
        without).
      norm_eps: epsilon added to the mean square or variance.
      block_type: for a sublayer f, `pre_norm` x + f(norm x), `post_norm` norm(x + f x) (OPT 350M),
        `reordered_norm` x + norm(f x) (OLMo 2); or `parallel`, x + attention(norm x) +
        mlp(norm' x) (GPT-NeoX).
      mlp_type: `gated`, (act(x gate) * x up) down, or `plain`, act(x up) down.
      activation: act of the MLP; `gelu` is exact, `gelu_tanh` its tanh approximation.
      use_bias: linear layers with a bias, any of `qkv`, `attention_output`, `mlp`.
      qk_norm: norm of queries and keys: `none`, `all_heads` (over all heads as one vector, OLMo 2)
        or `per_head` (Qwen3).
      sliding_window_pattern: attention windows in tokens, the token itself included, cycled over
        the layers; 0 is full causal attention (GPT-Neo: (0, 256)). Empty means full everywhere.
      tie_embeddings: whether the output head shares the embedding's weights.
      dtype: dtype of activations and matmuls. Norms, softmaxes and losses are always float32.
      param_dtype: dtype of the parameters.
      quantization: of the blocks' matmuls, forward and backward: `none`, `int8` or `fp8` (e4m3,
        gradients e5m2). Embedding, output head and attention scores are not quantized.
      init_stddev: standard deviation of the initial weight matrices.
      remat: activations of a block saved for the backward pass, besides its input; the others are
        recomputed. `none` recomputes nothing; `minimal` saves the outputs of attention and all
        linear layers; `attention` those of attention and its linear layers; `residual` only the
        attention sublayer's output; `full` nothing.
      scan_layers: whether to compile one block and scan over the layers, or to unroll them (slower
        to compile). Parameters are stacked over layers either way.
      quirks: options specific to one published family, as {'clip_qkv': 8.0}.
    """

    vocab_size: PositiveInt = 32_000
    num_layers: PositiveInt = 32
    embed_dim: PositiveInt = 4096
    mlp_dim: PositiveInt = 11_008
    num_heads: PositiveInt = 32
    num_kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    max_length: PositiveInt = 2048
    position_embedding: Literal["rotary", "learned", "alibi"] = "rotary"
    rope_theta: PositiveFloat = 10_000.0
    norm: Literal["rms", "layer", "layer_plain"] = "rms"
    norm_eps: PositiveFloat = 1e-6
    block_type: Literal["pre_norm", "post_norm", "reordered_norm", "parallel"] = "pre_norm"
    mlp_type: Literal["gated", "plain"] = "gated"
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    use_bias: tuple[str, ...] = ()
    qk_norm: Literal["none", "all_heads", "per_head"] = "none"
    sliding_window_pattern: tuple[NonNegativeInt, ...] = ()
    tie_embeddings: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: ParamDtype = "float32"
    quantization: Literal["none", "int8", "fp8"] = "none"
    init_stddev: NonNegativeFloat = 0.02
    remat: Remat = "none"
    scan_layers: bool = True
    quirks: Quirks = Quirks()

    def __post_init__(self) -> None:
        if self.num_layers > MAX_LAYERS:
            raise UserError(f"ModelConfig.num_layers = {self.num_layers}: at most {MAX_LAYERS:,}")
        if not set(self.use_bias) <= set(BIASES):
            known = ", ".join(BIASES)
            raise UserError(f"ModelConfig.use_bias = {self.use_bias}: choose from {known}")
        if self.num_heads % self.kv_heads:
            heads = f"num_kv_heads = {self.num_kv_heads} does not divide {self.num_heads} heads"
            raise UserError(f"ModelConfig.{heads}")
        if self.position_embedding == "rotary" and (self.rotary_dim % 2 or not self.rotary_dim):
            raise UserError(
                f"ModelConfig.head_dim = {self.head_dim}: RoPE rotates pairs, and "
                f"rotary_fraction = {self.quirks.rotary_fraction} leaves it {self.rotary_dim} of "
                f"{self.head_size} dimensions"
            )

    def saved(self) -> dict[str, Any]:
        """The config as JSON in a checkpoint, without the execution fields."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: value for name, value in fields.items() if name not in EXECUTION_FIELDS}

    @property
    def kv_heads(self) -> int:
        """`num_kv_heads`, or its default."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """`head_dim`, or its default."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def rotary_dim(self) -> int:
        """Dimensions of each head with RoPE."""
        return int(self.head_size * self.quirks.rotary_fraction)

    @property
    def embedding_dim(self) -> int:
        """Dimension of the embedding and the output head."""
        return self.quirks.embedding_dim or self.embed_dim

    @property
    def uniform_window(self) -> int | None:
        """Sliding window of all layers; None without one, where they differ, or with ALiBi."""
        (window, *others) = set(self.sliding_window_pattern) or {0}
        return None if others or self.position_embedding == "alibi" else window or None

    @property
    def num_params(self) -> int:
        """Exact number of parameters."""
        embeddings = (1 if self.tie_embeddings else 2) * self.vocab_size * self.embedding_dim
        if self.position_embedding == "learned":
            embeddings += (self.max_length + self.quirks.position_offset) * self.embed_dim
        norm = {"rms": 1, "layer": 2, "layer_plain": 0}[self.norm]  # vectors per norm
        norms = norm * (2 * self.num_layers + self.quirks.final_norm) * self.embed_dim
        query, key = self.num_heads * self.head_size, self.kv_heads * self.head_size
        biases = {
            "qkv": query + 2 * key,
            "attention_output": self.embed_dim,
            "mlp": (self._mlp_matrices - 1) * self.mlp_dim + self.embed_dim,
        }
        vectors = sum(biases[name] for name in set(self.use_bias))
        if self.qk_norm == "all_heads":
            vectors += norm * (query + key)
        elif self.qk_norm == "per_head":
            vectors += norm * 2 * self.head_size
        layers = self.num_layers * (self._block_matmul_params + vectors)
        return embeddings + norms + layers + self._projection_params

    def flops_per_token(self, length: int, causal: bool = False) -> float:
        """Training FLOPs (forward and backward) per token, in sequences of `length` tokens.

        6 N + 12 L H K T, as in PaLM (Chowdhery et al. 2022, appendix B). N counts the parameters
        of matmuls: the output head (tied or not), but no embeddings, norms or biases. The attention
        term counts all T keys per query, or with `causal` the (T + 1) / 2 visible on average.
        Sliding windows and rematerialization are ignored.
        """
        matmul_params = self.num_layers * self._block_matmul_params + self._projection_params
        matmul_params += self.vocab_size * self.embedding_dim
        keys = (length + 1) / 2 if causal else length
        attention = 12 * self.num_layers * self.num_heads * self.head_size * keys
        return 6.0 * matmul_params + attention

    @property
    def _block_matmul_params(self) -> int:
        attention = 2 * self.embed_dim * (self.num_heads + self.kv_heads) * self.head_size
        return attention + self._mlp_matrices * self.embed_dim * self.mlp_dim

    @property
    def _mlp_matrices(self) -> int:
        return 3 if self.mlp_type == "gated" else 2

    @property
    def _projection_params(self) -> int:
        projected = self.embedding_dim != self.embed_dim
        return 2 * self.embed_dim * self.embedding_dim if projected else 0
