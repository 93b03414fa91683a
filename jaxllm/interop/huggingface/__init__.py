"""Import and export of checkpoints in the Hugging Face format, one tensor at a time.

families       tensor names and layouts of each architecture
architectures  the config.json fields of each architecture
fields         config.json <-> ModelConfig; rope does so for rotary positions
checkpoint     memory-mapped tensors of a directory, validated before any is read
load           loading onto a mesh
importing      import into a run directory; stream writes the Orbax checkpoints in chunks
exporting      export from a run directory to one that Transformers loads
"""

from jaxllm.interop.huggingface.load import load

__all__ = ["load"]
