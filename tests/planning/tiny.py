"""The flags of a tiny run that a TPU's kernels fit."""

TINY = (
    "--gin_file=quickstart.gin", "--gin.ModelConfig.num_layers=2", "--gin.BATCH_SIZE=16",
    "--gin.SEQUENCE_LENGTH=256", "--gin.ModelConfig.dtype=bfloat16",
    "--gin.ModelConfig.embed_dim=256", "--gin.ModelConfig.num_heads=2",
    "--gin.VocabularyConfig.path=bytes", "--gin.EVAL_TASKS=()",
)  # fmt: skip
