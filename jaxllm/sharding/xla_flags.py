"""XLA flags for TPUs: one short table per chip generation.

Each flag states its purpose and its source. The tests compile with every row; a flag that the
installed compiler rejects is left out with a warning, as flags come and go between releases of
libtpu. `LIBTPU_INIT_ARGS` overrides the table, flag by flag.

Left out on purpose: flags of published lists with which libtpu 0.0.42 compiles the same program;
continuation fusion but on v5e, which libtpu 0.0.52 refuses ("incorrect results, hang, SDC"); and
the SparseCore's reduce-scatter and all-reduce, with which AXLearn saw abnormal losses.

Sources:
  [axlearn]   AXLearn, axlearn/common/compiler_options.py
  [guidance]  OpenXLA, https://openxla.org/xla/flags_guidance
  [library]   MaxText, benchmarks/xla_flags_library.py
  [ironwood]  MaxText, trainers/pre_train/scripts/olmo/run_olmo3_7b_stage1.sh
  [v4] [v5p]  MaxText, configs/tpu/v4/22b.sh and configs/tpu/v5p/32b.sh
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxllm.errors import one_line
from jaxllm.sharding.chips import chip_of

if TYPE_CHECKING:
    import jax

_log = logging.getLogger(__name__)

_VMEM = "xla_tpu_scoped_vmem_limit_kib"  # attention blocks of 2048 need more than 16 MiB of scratch

FLAGS: dict[str, dict[str, str]] = {
    "v4": {
        # gathers a layer's parameters while another computes, as later chips do [axlearn, v4]
        "xla_enable_async_all_gather": "true",
    },
    "v5e": {
        # all-reduces of gradients and activations run inside what they overlap with [guidance]
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
    },
    "v5p": {
        _VMEM: "65536",  # [axlearn: 65472]
        # leaves all-gathers out of fusions, free to overlap with them [v5p, guidance]
        "xla_tpu_megacore_fusion_allow_ags": "false",
    },
    "v6e": {
        _VMEM: "98304",  # [axlearn, library]
        # the input of a reduce-scatter is laid out as it is sharded, without a copy [library]
        "xla_tpu_use_minor_sharding_for_major_trivial_input": "true",
        "xla_tpu_relayout_group_size_threshold_for_reduce_scatter": "1",  # in groups of any size
        # all-reduces followed by a slice become reduce-scatters in that layout [library]
        "xla_tpu_assign_all_reduce_scatter_layout": "true",
    },
    "7x": {
        _VMEM: "65536",  # [ironwood]
        # bf16 arithmetic in the vector unit without a detour over float32 [ironwood]
        "xla_tpu_bf16_emission_mode": "NATIVE_EMISSION",
        # the SparseCore gathers parameters while the TensorCore computes [ironwood]
        "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "false",  # they go there instead
    },
}

SEVERAL_SLICES: dict[str, str] = {
    # gradients cross the data-center network while earlier layers' are computed [guidance]
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    # the same for gradients of different sizes; takes some memory [guidance]
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
    # gathers between slices begin an iteration of the loop over layers early [guidance]
    "xla_tpu_enable_ag_backward_pipelining": "true",
}


def compiler_options(generation: str, slices: int = 1) -> dict[str, str]:
    """Flags of a generation for `lowered.compile(compiler_options=…)`.

    Flags in `LIBTPU_INIT_ARGS` are left out: the user's values win.
    """
    flags = FLAGS[generation] | (SEVERAL_SLICES if slices > 1 else {})
    overridden = set(re.findall(r"--(\w+)", os.environ.get("LIBTPU_INIT_ARGS", "")))
    return {name: value for name, value in flags.items() if name not in overridden}


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

    They are tried one by one on a program of one addition, in a tenth of a second each; one that
    fails beside those accepted before it is left out, with a warning.
    """
    import jax

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    number = jax.ShapeDtypeStruct((), "float32", sharding=everywhere)
    program = jax.jit(lambda x: x + 1).lower(number)
    working: dict[str, str] = {}
    for name, value in options.items():
        try:
            program.compile(compiler_options={**working, name: value})
            working[name] = value
        except jax.errors.JaxRuntimeError as error:
            _log.warning("the compiler refuses %s=%s, left out: %s", name, value, one_line(error))
    return working
