"""Every preset makes a mesh of every pod, and gives each host rows of its own or those of the hosts beside it."""

import numpy as np
import pytest

from owl3_jax.config import ConfigError
from owl3_jax.sharding import MESH_PRESETS, make_mesh, processes_of, rows_of_process
from owl3_jax.tpu.topology import get_topology

pytest.importorskip("libtpu", reason="it knows the topologies")

TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v6e:4x4", "v6e:16x16", "v5p:4x4x4", "v5p:4x4x8", "v4:4x4x8", "tpu7x:4x4x8")


@pytest.mark.parametrize("preset", MESH_PRESETS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_preset_makes_a_mesh_whose_hosts_have_whole_parts_of_the_rows(name, preset):
    config = MESH_PRESETS[preset]
    topology = get_topology(name, config.slices)
    if config.fsdp > len(topology.devices):
        with pytest.raises(ConfigError, match=f"needs {config.fsdp} devices, there are {len(topology.devices)}"):
            make_mesh(config, topology.devices)
        return
    mesh = make_mesh(config, topology.devices)
    processes = processes_of(mesh)
    blocks = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = [tuple(rows_of_process(processes, process, blocks)) for process in np.unique(processes).tolist()]
    assert sorted(row for part in set(parts) for row in part) == list(range(blocks))
    rows = processes.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    own = dict(zip(np.unique(processes).tolist(), parts, strict=True))
    assert all(len({own[process] for process in row}) == 1 for row in rows.tolist()), "who holds a row makes it"
