"""The shape of a decoder, and what follows from it: parameter count and FLOPs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gin

from jaxllm.configs import checked, configurable
from jaxllm.errors import UserError

DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "minimal", "attention", "residual", "full")
BIASES = ("qkv", "attention_output", "mlp")
_CHOICES = {
    "dtype": DTYPES,
    "param_dtype": (*DTYPES, "float16"),
    "position_embedding": ("rotary", "learned", "alibi"),
    "norm": ("rms", "layer", "layer_plain"),
    "block_type": ("pre_norm", "post_norm", "reordered_norm", "parallel"),
    "mlp_type": ("gated", "plain"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
    "qk_norm": ("none", "all_heads", "per_head"),
    "quantization": ("none", "int8", "fp8"),
    "remat": REMAT_POLICIES,
}


@gin.configurable
def of_size(size: str, fields: tuple[str, ...], sizes: Mapping[str, tuple[Any, ...]]) -> Any:
    """Look a field of ModelConfig up in a family's table of sizes (see gin/models/sizes.gin).

    In gin `@num_layers/of_size()`: the scope names the field. A field that the table does not have
    keeps its default.

    Args:
      size: the row, as 7b.
      fields: names of the columns.
      sizes: size -> its row.

    Raises:
      UserError: no row of that name.
    """
    if size not in sizes:
        raise UserError(f"SIZE = {size!r}: must be one of {', '.join(sizes)}")
    field = gin.current_scope_str()
    row = dict(zip(fields, sizes[size], strict=True))
    return row[field] if field in row else ModelConfig.__dataclass_fields__[field].default


def _check_positive(config: Any, name: str, may_be_zero: tuple[str, ...]) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if numeric and not (value > 0 or (value == 0 and field.name in may_be_zero)):
            raise UserError(f"{name}.{field.name} = {value}: must be positive")


@checked
@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretches RoPE beyond the length that a model was first trained at.

    Attributes:
      kind: `linear` divides all frequencies by factor (Chen et al. 2023); `llama3` only those of
        long wavelengths (Llama team 2024); `yarn` those of long wavelengths, and multiplies
        queries and keys by attention_factor (Peng et al. 2023).
      factor: by how much the context grows.
      original_length: the context length in tokens before; `linear` does not need it.
      low_freq_factor: of `llama3`: wavelengths above original_length / this are divided in full.
      high_freq_factor: of `llama3`: wavelengths below original_length / this are left.
      beta_slow: of `yarn`: frequencies with fewer rotations in original_length are divided in full.
      beta_fast: of `yarn`: frequencies with more rotations are left.
      attention_factor: of `yarn`; None means 0.1 ln(factor) + 1.
    """

    kind: str
    factor: float
    original_length: int = 2048
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_slow: float = 1.0
    beta_fast: float = 32.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "RopeScaling", may_be_zero=())
        if self.kind not in (kinds := ("linear", "llama3", "yarn")):
            raise UserError(f"RopeScaling.kind = {self.kind!r}: must be one of {', '.join(kinds)}")


@checked
@dataclasses.dataclass(frozen=True)
class Quirks:
    """Options that a single published family has, and a new model hardly wants.

    Attributes:
      rotary_fraction: share of a head's dimensions, from the first, that RoPE rotates (GPT-NeoX).
      rope_scaling: see `RopeScaling`; None leaves the frequencies.
      position_offset: learned position embeddings before position 0 (OPT: 2).
      embedding_dim: dimension of the embedding and the head, with projections to and from
        embed_dim (OPT 350M); None means embed_dim, without projections.
      final_norm: whether the last block's output is normalized (OPT 350M: not).
      normalize_lm_head: whether each token's head vector is scaled to length 1 (Baichuan 2).
      attention_scale: factor of the scores (GPT-Neo: 1); None means head_dim ** -0.5.
      clip_qkv: queries, keys and values are clipped to [-clip_qkv, clip_qkv] (OLMo 1.7).
    """

    rotary_fraction: float = 1.0
    rope_scaling: RopeScaling | None = None
    position_offset: int = 0
    embedding_dim: int | None = None
    final_norm: bool = True
    normalize_lm_head: bool = False
    attention_scale: float | None = None
    clip_qkv: float | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "Quirks", may_be_zero=("position_offset",))
        if self.rotary_fraction > 1:
            raise UserError(f"Quirks.rotary_fraction = {self.rotary_fraction}: must be at most 1")


@configurable
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder. The defaults are LLaMA's: RMSNorm, RoPE, SwiGLU, grouped-query attention.

    Attributes:
      vocab_size: number of token ids.
      num_layers: number of transformer blocks.
      embed_dim: dimension of the residual stream.
      mlp_dim: hidden dimension of the MLP.
      num_heads: number of query heads.
      num_kv_heads: number of key and value heads, a divisor of num_heads; None means num_heads.
      head_dim: dimension of a head; None means embed_dim / num_heads.
      max_length: context length in tokens.
      position_embedding: `rotary` (RoPE), `learned` (max_length vectors that are added to the
        embeddings) or `alibi` (scores fall linearly with the distance).
      rope_theta: base of the rotary frequencies.
      norm: `rms`; `layer`, LayerNorm with scale and bias; `layer_plain`, without either.
      norm_eps: added to the mean square or the variance in norms.
      block_type: for a sublayer f, `pre_norm` x + f(norm x), `post_norm` norm(x + f x) (OPT 350M),
        `reordered_norm` x + norm(f x) (OLMo 2); or `parallel`, x + attention(norm x) +
        mlp(norm' x) (GPT-NeoX).
      mlp_type: `gated`, (act(x gate) * x up) down, or `plain`, act(x up) down.
      activation: act; `gelu` is exact, `gelu_tanh` its approximation.
      use_bias: linear layers with a bias: `qkv`, `attention_output`, `mlp`.
      qk_norm: norm of queries and keys: `none`; `all_heads`, over all heads as one vector (OLMo 2);
        or `per_head` (Qwen3).
      sliding_window_pattern: tokens that a token attends to, itself included, cycled over the
        layers; 0 is all before it (GPT-Neo: (0, 256)). Empty: all, in every layer.
      tie_embeddings: whether the embedding is the output head too.
      dtype: dtype of activations and matmuls. Norms, softmaxes and losses are float32 always.
      param_dtype: dtype of the parameters.
      quantization: of the blocks' matmuls, forward and backward: `none`; `int8`; or `fp8`, e4m3,
        and e5m2 for gradients. Embedding, head and attention scores are not quantized.
      init_stddev: standard deviation of every initial weight matrix.
      remat: activations that the backward pass recomputes. `none` nothing; `minimal` all but the
        outputs of the linear layers; `attention` all but the outputs of attention's linear layers;
        `residual` all but the output of attention; `full` the whole block.
      scan_layers: compile one block and loop over it, or compile every block on its own (slower to
        compile; parameters are stacked over layers either way).
      quirks: options of single published families, as {'clip_qkv': 8.0}.
    """

    vocab_size: int = 32_000
    num_layers: int = 32
    embed_dim: int = 4096
    mlp_dim: int = 11_008
    num_heads: int = 32
    num_kv_heads: int | None = None
    head_dim: int | None = None
    max_length: int = 2048
    position_embedding: str = "rotary"
    rope_theta: float = 10_000.0
    norm: str = "rms"
    norm_eps: float = 1e-6
    block_type: str = "pre_norm"
    mlp_type: str = "gated"
    activation: str = "silu"
    use_bias: tuple[str, ...] = ()
    qk_norm: str = "none"
    sliding_window_pattern: tuple[int, ...] = ()
    tie_embeddings: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    quantization: str = "none"
    init_stddev: float = 0.02
    remat: str = "none"
    scan_layers: bool = True
    quirks: Quirks = Quirks()

    def __post_init__(self) -> None:
        _check_positive(self, "ModelConfig", may_be_zero=("init_stddev",))
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"ModelConfig.{name} = {getattr(self, name)!r}: "
                    f"must be one of {', '.join(known)}"
                )
        if not set(self.use_bias) <= set(BIASES):
            raise UserError(
                f"ModelConfig.use_bias = {self.use_bias}: choose from {', '.join(BIASES)}"
            )
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"ModelConfig.num_kv_heads = {self.num_kv_heads} does not divide "
                f"num_heads = {self.num_heads}"
            )
        if self.position_embedding == "rotary" and (self.rotary_dim % 2 or not self.rotary_dim):
            raise UserError(
                f"ModelConfig.head_dim = {self.head_dim}: RoPE rotates pairs, and "
                f"rotary_fraction = {self.quirks.rotary_fraction} leaves it {self.rotary_dim} of "
                f"{self.head_size} dimensions"
            )
        if any(window < 0 for window in self.sliding_window_pattern):
            raise UserError(
                f"ModelConfig.sliding_window_pattern = {self.sliding_window_pattern}: must be "
                "numbers of tokens, 0 for all"
            )

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
        """Dimensions of each head that RoPE rotates."""
        return int(self.head_size * self.quirks.rotary_fraction)

    @property
    def embedding_dim(self) -> int:
        """Dimension of the embedding and the head."""
        return self.quirks.embedding_dim or self.embed_dim

    @property
    def uniform_window(self) -> int | None:
        """The sliding window that all layers share; None without one, or if they differ."""
        (window, *others) = set(self.sliding_window_pattern) or {0}
        return None if others or self.position_embedding == "alibi" else window or None

    @property
    def num_params(self) -> int:
        """The exact number of parameters."""
        embeddings = (1 if self.tie_embeddings else 2) * self.vocab_size * self.embedding_dim
        if self.position_embedding == "learned":
            embeddings += (self.max_length + self.quirks.position_offset) * self.embed_dim
        norm = {"rms": 1, "layer": 2, "layer_plain": 0}[self.norm]  # vectors of each
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

        6 N + 12 L H K T, as in PaLM (Chowdhery et al. 2022, appendix B): N counts the parameters
        of every matmul, which leaves out the embeddings (but not the head, tied or not), the norms
        and the biases. The attention term counts all T keys of a query, or with `causal` only the
        (T + 1) / 2 that it sees on average; sliding windows take nothing off, as scores outside of
        them are computed and masked. Rematerialization is not counted.
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
