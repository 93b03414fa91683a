"""Checkpoints in the Hugging Face format, in and out, one tensor at a time.

families       what each architecture calls our parameters, and how it lays them out
architectures  what each config.json means
fields         config.json <-> ModelConfig; rope does so for rotary positions
checkpoint     a directory's tensors as memory maps, checked before anything is read
load           onto a mesh
importing      into a run directory; stream writes the Orbax checkpoints in chunks
exporting      out of one, as a directory that Transformers loads
"""

from jaxllm.interop.huggingface.load import load

__all__ = ["load"]
