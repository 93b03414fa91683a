"""The shape of a decoder, and what follows from it: parameter count and FLOPs."""

from __future__ import annotations

import dataclasses

from jaxllm.configs import configurable
from jaxllm.errors import UserError

DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "minimal", "attention", "residual", "full")
POSITIONS = ("rotary", "learned", "alibi")
NORMS = ("rms", "layer", "layer_plain")
NORM_PLACEMENTS = ("pre", "post", "sublayer")
BLOCKS = ("serial", "parallel")
MLPS = ("gated", "plain")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
QUANTIZATIONS = ("none", "int8", "fp8")
_CHOICES = {
    "dtype": DTYPES, "param_dtype": (*DTYPES, "float16"), "remat": REMAT_POLICIES,
    "position": POSITIONS, "norm": NORMS, "norm_placement": NORM_PLACEMENTS, "block": BLOCKS,
    "mlp": MLPS, "activation": ACTIVATIONS, "quantization": QUANTIZATIONS,
}  # fmt: skip


@configurable
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder. The defaults are LLaMA's: RMSNorm, rotary positions, SwiGLU, grouped queries.

    Attributes:
      vocab_size: tokens in the vocabulary.
      num_layers: transformer blocks.
      embed_dim: width of the residual stream.
      mlp_dim: width of the feed-forward layer.
      num_heads: query heads.
      num_kv_heads: key and value heads, a divisor of num_heads; None means num_heads.
      head_dim: width of a head; None means embed_dim / num_heads.
      max_length: the context length, in tokens, that the model is trained for.
      position: how a token's place enters: `rotary` turns queries and keys, `learned` adds a row of
        a table of max_length, `alibi` lowers scores with the distance.
      rope_theta: base of the rotary frequencies.
      rotary_fraction: share of each head, from its start, that rotary positions turn.
      position_offset: rows of the learned table before position 0 (OPT: 2).
      norm: `rms`; `layer`, LayerNorm with a scale and a bias; `layer_plain`, without either.
      norm_eps: added to the mean square or the variance in norms.
      norm_placement: for a sublayer f, `pre` x + f(norm x), `post` norm(x + f x) (OPT 350M),
        `sublayer` x + norm(f x) (OLMo 2).
      final_norm: whether the last block's output is normed.
      block: `serial`, or `parallel`, x + attention(norm x) + mlp(norm' x) (GPT-NeoX).
      mlp: `gated`, (act(x gate) * x up) down, or `plain`, act(x up) down.
      activation: act; `gelu` is exact, `gelu_tanh` its approximation.
      attention_bias: whether queries, keys and values have biases.
      attention_output_bias: whether attention's output has one.
      mlp_bias: whether the feed-forward matrices have biases.
      qk_norm: whether the whole query and the whole key, all heads as one vector, are normed.
      clip_qkv: queries, keys and values are clipped to [-clip_qkv, clip_qkv]; None leaves them.
      attention_scale: factor of the scores; None means head_dim ** -0.5.
      attention_windows: how many tokens back, itself included, a token attends, cycled over the
        layers; 0 is all of them (GPT-Neo: (0, 256)). Empty: all, in every layer.
      token_dim: width of the embedding and the head, with projections between them and the
        residual stream (OPT 350M); None means embed_dim, without projections.
      tied_head: whether the embedding is the output head too.
      head_norm: whether each token's head vector is scaled to length 1 (Baichuan 2).
      dtype: in which activations and matrix products are computed. Norms, softmaxes and losses
        are float32 always.
      param_dtype: in which parameters are kept.
      quantization: of the blocks' matrix products, forward and backward: `none`; `int8`; or `fp8`,
        e4m3, and e5m2 for gradients. Embedding, head and attention's own products are spared.
      init_stddev: standard deviation of every initial matrix.
      remat: what the backward pass recomputes. `none` nothing; `minimal` all but the outputs of
        the weight matrices; `attention` all but the outputs of attention's; `residual` all but what
        attention adds to the residual stream; `full` the whole block.
      scan_layers: compile one block and loop over it, or compile every block on its own
        (slower to compile; parameters are stacked over layers either way).
      attention_block: attention is computed this many tokens at a time; None: as many as suits
        the platform (`models.attention`).
      loss_chunk_tokens: logits exist for this many tokens (of each device's rows) at a time.
    """

    vocab_size: int = 32_000
    num_layers: int = 32
    embed_dim: int = 4096
    mlp_dim: int = 11_008
    num_heads: int = 32
    num_kv_heads: int | None = None
    head_dim: int | None = None
    max_length: int = 2048
    position: str = "rotary"
    rope_theta: float = 10_000.0
    rotary_fraction: float = 1.0
    position_offset: int = 0
    norm: str = "rms"
    norm_eps: float = 1e-6
    norm_placement: str = "pre"
    final_norm: bool = True
    block: str = "serial"
    mlp: str = "gated"
    activation: str = "silu"
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    clip_qkv: float | None = None
    attention_scale: float | None = None
    attention_windows: tuple[int, ...] = ()
    token_dim: int | None = None
    tied_head: bool = False
    head_norm: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    quantization: str = "none"
    init_stddev: float = 0.02
    remat: str = "none"
    scan_layers: bool = True
    attention_block: int | None = None
    loss_chunk_tokens: int = 1024

    def __post_init__(self) -> None:
        may_be_zero = ("init_stddev", "position_offset")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
            if numeric and not (value > 0 or (value == 0 and field.name in may_be_zero)):
                raise UserError(f"ModelConfig.{field.name} = {value}: must be positive")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"ModelConfig.{name} = {getattr(self, name)!r}: "
                    f"must be one of {', '.join(known)}"
                )
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"ModelConfig.num_kv_heads = {self.num_kv_heads} does not divide "
                f"num_heads = {self.num_heads}"
            )
        if self.rotary_fraction > 1:
            raise UserError(
                f"ModelConfig.rotary_fraction = {self.rotary_fraction}: must be at most 1"
            )
        if self.position == "rotary" and (self.rotary_width % 2 or not self.rotary_width):
            raise UserError(
                f"ModelConfig.head_dim = {self.head_dim}: rotary positions need an even one, and "
                f"rotary_fraction = {self.rotary_fraction} turns {self.rotary_width} of "
                f"{self.head_width} dimensions"
            )
        if self.block == "parallel" and self.norm_placement != "pre":
            raise UserError(
                f"ModelConfig.norm_placement = {self.norm_placement!r}: "
                "a parallel block needs 'pre'"
            )
        if any(window < 0 for window in self.attention_windows):
            raise UserError(
                f"ModelConfig.attention_windows = {self.attention_windows}: must be numbers of "
                "tokens, 0 for all"
            )

    @property
    def kv_heads(self) -> int:
        """Key and value heads: `num_kv_heads`, or its default."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Width of a head: `head_dim`, or its default."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def rotary_width(self) -> int:
        """How many dimensions of a head rotary positions turn."""
        return int(self.head_width * self.rotary_fraction)

    @property
    def uniform_window(self) -> int | None:
        """The attention window that all layers have; None without one, or if they differ."""
        (window, *others) = set(self.attention_windows) or {0}
        return None if others or self.position == "alibi" else window or None

    @property
    def token_width(self) -> int:
        """Width of the embedding: `token_dim`, or its default."""
        return self.token_dim or self.embed_dim

    @property
    def num_params(self) -> int:
        """The exact number of parameters."""
        tables = (1 if self.tied_head else 2) * self.vocab_size * self.token_width
        if self.position == "learned":
            tables += (self.max_length + self.position_offset) * self.embed_dim
        norm = {"rms": 1, "layer": 2, "layer_plain": 0}[self.norm]  # vectors of each
        norms = norm * (2 * self.num_layers + self.final_norm) * self.embed_dim
        query, key = self.num_heads * self.head_width, self.kv_heads * self.head_width
        vectors = (
            self.attention_bias * (query + 2 * key)
            + self.attention_output_bias * self.embed_dim
            + self.mlp_bias * ((self._mlp_matrices - 1) * self.mlp_dim + self.embed_dim)
            + self.qk_norm * norm * (query + key)
        )
        layers = self.num_layers * (self._block_matrix_params + vectors)
        return tables + norms + layers + self._projection_params

    def flops_per_token(self, length: int, causal: bool = False) -> float:
        """Training FLOPs (forward and backward) per token, in rows of `length` tokens.

        6 N + 12 L H K T, as in PaLM (Chowdhery et al. 2022, appendix B): N counts the parameters
        of every matrix product, which leaves out the tables that are looked up (the head counts,
        tied or not), the norms and the biases. The attention term counts all T keys of a query,
        or with `causal` only the (T + 1) / 2 that it may see on average; windows take nothing off,
        as their scores are computed and masked. Recomputation (remat) is not counted.
        """
        matrices = self.num_layers * self._block_matrix_params + self._projection_params
        matrices += self.vocab_size * self.token_width
        keys = (length + 1) / 2 if causal else length
        attention = 12 * self.num_layers * self.num_heads * self.head_width * keys
        return 6.0 * matrices + attention

    @property
    def _block_matrix_params(self) -> int:
        attention = 2 * self.embed_dim * (self.num_heads + self.kv_heads) * self.head_width
        return attention + self._mlp_matrices * self.embed_dim * self.mlp_dim

    @property
    def _mlp_matrices(self) -> int:
        return 3 if self.mlp == "gated" else 2

    @property
    def _projection_params(self) -> int:
        return 2 * self.embed_dim * self.token_width if self.token_width != self.embed_dim else 0
