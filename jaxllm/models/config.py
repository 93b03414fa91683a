"""The shape of a decoder, and what follows from it: parameter count and FLOPs."""

from __future__ import annotations

import dataclasses

import gin

from jaxllm.errors import UserError

DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "minimal", "attention", "full")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A LLaMA-style decoder: RMSNorm, rotary positions, SwiGLU, grouped-query attention.

    Attributes:
      vocab_size: tokens in the vocabulary.
      num_layers: transformer blocks.
      embed_dim: width of the residual stream.
      mlp_dim: width of the gated feed-forward layer.
      num_heads: query heads.
      num_kv_heads: key and value heads, a divisor of num_heads; None means num_heads.
      head_dim: width of a head; None means embed_dim / num_heads.
      max_length: the context length, in tokens, that the model is trained for.
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the mean square in RMSNorm.
      tied_head: whether the embedding is the output head too.
      dtype: in which activations and matrix products are computed. Norms, softmaxes and losses
        are float32 always.
      param_dtype: in which parameters are kept.
      init_stddev: standard deviation of every initial matrix.
      remat: what the backward pass recomputes. `none` nothing; `minimal` all but the outputs of
        the weight matrices; `attention` all but the outputs of attention's; `full` the whole block.
      scan_layers: compile one block and loop over it, or compile every block on its own
        (slower to compile; parameters are stacked over layers either way).
      attention_block: attention is computed this many queries at a time, each block against the
        keys before its end only.
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
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tied_head: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    init_stddev: float = 0.02
    remat: str = "none"
    scan_layers: bool = True
    attention_block: int = 256
    loss_chunk_tokens: int = 1024

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
            if numeric and (value < 0 or (value == 0 and field.name != "init_stddev")):
                raise UserError(f"ModelConfig.{field.name} = {value}: must be positive")
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"ModelConfig.num_kv_heads = {self.num_kv_heads} does not divide "
                f"num_heads = {self.num_heads}"
            )
        if self.head_width % 2:
            raise UserError(
                f"ModelConfig.head_dim = {self.head_dim}: rotary positions need an even one"
            )
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("param_dtype", self.param_dtype, DTYPES)
        _check_choice("remat", self.remat, REMAT_POLICIES)

    @property
    def kv_heads(self) -> int:
        """Key and value heads: `num_kv_heads`, or its default."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Width of a head: `head_dim`, or its default."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def num_params(self) -> int:
        """The exact number of parameters."""
        embeddings = (1 if self.tied_head else 2) * self.vocab_size * self.embed_dim
        norms = (2 * self.num_layers + 1) * self.embed_dim
        return embeddings + norms + self.num_layers * self._block_matrix_params

    def flops_per_token(self, length: int, causal: bool = False) -> float:
        """Training FLOPs (forward and backward) per token, in rows of `length` tokens.

        6 N + 12 L H K T, as in PaLM (Chowdhery et al. 2022, appendix B): N counts the parameters
        of every matrix product, which leaves out the embedding table that is looked up (the
        head counts, tied or not) and the norms. The attention term counts all T keys of a query,
        or with `causal` only the (T + 1) / 2 that it may see on average. Recomputation (remat) is
        not counted.
        """
        matrices = self.num_layers * self._block_matrix_params + self.vocab_size * self.embed_dim
        keys = (length + 1) / 2 if causal else length
        attention = 12 * self.num_layers * self.num_heads * self.head_width * keys
        return 6.0 * matrices + attention

    @property
    def _block_matrix_params(self) -> int:
        attention = 2 * self.embed_dim * (self.num_heads + self.kv_heads) * self.head_width
        return attention + 3 * self.embed_dim * self.mlp_dim


def _check_choice(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"ModelConfig.{field} = {value!r}: must be one of {', '.join(known)}")
