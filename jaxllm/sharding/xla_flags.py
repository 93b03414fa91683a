"""XLA flags for TPUs: one short table per chip generation.

Each flag states its purpose and its source. The tests compile with every row; a flag that the
installed compiler rejects is left out with a warning, as flags come and go between releases of
libtpu. `LIBTPU_INIT_ARGS` overrides the table, flag by flag.

Left out on purpose: flags of published lists that are libtpu's defaults, as 0.0.42 compiles the
same program with and without them (asynchronous permutes; on v5e the rest of continuation fusion,
`xla_tpu_enable_async_collective_fusion…`); continuation fusion elsewhere, which libtpu 0.0.52
refuses ("incorrect results, hang, SDC"); and the SparseCore's reduce-scatter and all-reduce, with
which AXLearn saw abnormal losses.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxllm.sharding.chips import chip_of

if TYPE_CHECKING:
    import jax

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Flag:
    """A compiler option that differs from the compiler's default.

    Attributes:
      name: as in `LIBTPU_INIT_ARGS`, without the dashes.
      value: as written there.
      purpose: its effect.
      source: who recommends it for this generation.
    """

    name: str
    value: str
    purpose: str
    source: str


_AXLEARN = "AXLearn, axlearn/common/compiler_options.py"
_GUIDANCE = "OpenXLA, https://openxla.org/xla/flags_guidance"
_LIBRARY = "MaxText, benchmarks/xla_flags_library.py"
_IRONWOOD = "MaxText, trainers/pre_train/scripts/olmo/run_olmo3_7b_stage1.sh"


def _vmem(kib: int, source: str) -> Flag:
    purpose = "attention blocks of 2048 and larger fusions need more scratch than 16 MiB"
    return Flag("xla_tpu_scoped_vmem_limit_kib", str(kib), purpose, source)


FLAGS: dict[str, tuple[Flag, ...]] = {
    "v4": (
        Flag(
            "xla_enable_async_all_gather", "true",
            "gathers a layer's parameters while another computes, as later chips do by themselves",
            f"{_AXLEARN}; MaxText, configs/tpu/v4/22b.sh",
        ),
    ),
    "v5e": (
        Flag(
            "xla_tpu_enable_async_collective_fusion_fuse_all_reduce", "true",
            "all-reduces, of gradients and of activations, run inside of what they overlap with",
            _GUIDANCE,
        ),
    ),
    "v5p": (
        _vmem(65536, f"{_AXLEARN} (65472)"),
        Flag(
            "xla_tpu_megacore_fusion_allow_ags", "false",
            "leaves all-gathers out of fusions, free to overlap with them",
            f"MaxText, configs/tpu/v5p/32b.sh; {_GUIDANCE}",
        ),
    ),
    "v6e": (
        _vmem(98304, f"{_AXLEARN}; {_LIBRARY}"),
        Flag(
            "xla_tpu_use_minor_sharding_for_major_trivial_input", "true",
            "a reduce-scatter's input is laid out as it is sharded: no copy before it",
            _LIBRARY,
        ),
        Flag(
            "xla_tpu_relayout_group_size_threshold_for_reduce_scatter", "1",
            "so for groups of any size",
            _LIBRARY,
        ),
        Flag(
            "xla_tpu_assign_all_reduce_scatter_layout", "true",
            "all-reduces followed by a slice become reduce-scatters in that layout",
            _LIBRARY,
        ),
    ),
    "7x": (
        _vmem(65536, _IRONWOOD),
        Flag(
            "xla_tpu_bf16_emission_mode", "NATIVE_EMISSION",
            "bf16 arithmetic in the vector unit without a detour over float32",
            _IRONWOOD,
        ),
        Flag(
            "xla_tpu_enable_sparse_core_collective_offload_all_gather", "true",
            "the SparseCore gathers parameters while the TensorCore computes",
            _IRONWOOD,
        ),
        Flag(
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather", "false",
            "all-gathers go to the SparseCore instead",
            _IRONWOOD,
        ),
    ),
}  # fmt: skip

SEVERAL_SLICES: tuple[Flag, ...] = (
    Flag(
        "xla_tpu_enable_data_parallel_all_reduce_opt", "true",
        "gradients cross the data centre's network while earlier layers' are computed",
        _GUIDANCE,
    ),
    Flag(
        "xla_tpu_data_parallel_opt_different_sized_ops", "true",
        "so also where they are not of one size; takes some memory",
        _GUIDANCE,
    ),
    Flag(
        "xla_tpu_enable_ag_backward_pipelining", "true",
        "gathers between slices begin an iteration of the loop over layers early",
        _GUIDANCE,
    ),
)  # fmt: skip


def compiler_options(generation: str, slices: int = 1) -> dict[str, str]:
    """Flags of a generation for `lowered.compile(compiler_options=…)`.

    Flags in `LIBTPU_INIT_ARGS` are left out: the user's values win.
    """
    flags = FLAGS[generation] + (SEVERAL_SLICES if slices > 1 else ())
    asked = set(re.findall(r"--(\w+)", os.environ.get("LIBTPU_INIT_ARGS", "")))
    return {flag.name: flag.value for flag in flags if flag.name not in asked}


def mesh_options(mesh: jax.sharding.Mesh) -> dict[str, str]:
    """Compiler options for programs on `mesh`; empty except on TPUs."""
    devices = mesh.devices.flatten()
    chip = chip_of(devices[0].device_kind)
    if chip is None or chip.name not in FLAGS:
        return {}
    slices = {getattr(device, "slice_index", 0) for device in devices}
    return accepted(compiler_options(chip.name, len(slices)), mesh)


def accepted(options: Mapping[str, str], mesh: jax.sharding.Mesh) -> dict[str, str]:
    """Filter options to those that the compiler of the mesh's devices accepts together.

    They are tried on a program of one addition, in a tenth of a second. If that fails, they are
    tried one by one; each that fails beside those accepted before it is left out, with a warning.
    """
    if _refusal(options, mesh) is None:
        return dict(options)
    taken: dict[str, str] = {}
    for name, value in options.items():
        refusal = _refusal(taken | {name: value}, mesh)
        if refusal is None:
            taken[name] = value
        else:
            _log.warning("the compiler refuses %s=%s, left out: %s", name, value, refusal)
    return taken


def _refusal(options: Mapping[str, str], mesh: jax.sharding.Mesh) -> str | None:
    """The compiler's error with these options, on one line; None if there is none."""
    import jax

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    number = jax.ShapeDtypeStruct((), "float32", sharding=everywhere)
    try:
        jax.jit(lambda x: x + 1).lower(number).compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        return " ".join(str(error).split())
    return None
