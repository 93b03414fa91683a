"""A small LLaMA with a tokenizer, as a directory that Transformers and jaxllm load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def save_llama(
    directory: Path, texts: Sequence[str], vocab_size: int, steps: int = 0, **shape: int
) -> None:
    """Saves a random LLaMA and a byte-level BPE tokenizer trained on `texts`.

    The weights are larger than an initialisation's, so that options differ. With `steps`, it is
    then trained on the texts for so many updates.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # the BOS that LLaMA's tokenizers put before every text
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, bos_token_id=0, eos_token_id=1, initializer_range=0.1, **shape
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        rows = fast([f"{text}</s>" for text in texts[step * 8 : step * 8 + 8]])["input_ids"]
        tokens = torch.full((8, 128), -100)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids[:128])] = torch.tensor(ids[:128])
        model(tokens.clamp(min=0), labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config.pad_token_id = 1
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
