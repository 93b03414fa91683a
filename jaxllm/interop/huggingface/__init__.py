"""Import and export of checkpoints in the Hugging Face format, one tensor at a time.

architectures  tensors and config.json fields of each architecture
fields         config.json <-> ModelConfig
checkpoint     memory-mapped tensors of a directory, validated, and loaded onto a mesh
importing      import into a run directory
exporting      export from a run directory to one that Transformers loads
"""

from jaxllm.interop.huggingface.checkpoint import load

__all__ = ["load"]
