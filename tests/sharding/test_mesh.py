"""Meshes by name: sizes worked out, slices, and axes along the torus of real TPU topologies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from aqaa_jax.config import MeshConfig
from aqaa_jax.sharding.mesh import abstract_mesh, describe, make_mesh, parse_mesh, resolve


def test_sizes_by_name():
    assert parse_mesh("fsdp=8, tensor=-1,dcn_data=2") == MeshConfig(fsdp=8, tensor=-1, dcn_data=2)
    assert parse_mesh("") == MeshConfig()
    assert describe(MeshConfig(fsdp=8, dcn_data=2)) == "mesh fsdp=8,dcn_data=2"
    for text in ("fsdp", "fsdp=x", "fdsp=2", "fsdp=2,fsdp=4"):
        with pytest.raises(ValueError, match=f"mesh is '{text}'; expected sizes by name"):
            parse_mesh(text)


def test_the_rest_of_the_devices():
    assert resolve(parse_mesh("fsdp=-1,tensor=4"), 64) == MeshConfig(fsdp=16, tensor=4)
    assert resolve(parse_mesh("fsdp=-1,dcn_data=-1"), 64, 3) == MeshConfig(fsdp=64, dcn_data=3)
    for text, slices, message in [
        ("fsdp=-1,tensor=5", 1, "64 devices of a slice do not divide by 5"),
        ("fsdp=-1,tensor=-1", 1, "expected sizes of at least 1, or -1 on one of"),
        ("fsdp=0", 1, "mesh fsdp=0: expected sizes of at least 1"),
        ("fsdp=128", 1, "mesh fsdp=128 needs 128 devices, 64 are available"),
        ("fsdp=64", 2, "mesh fsdp=64 spans 1 slices, the devices are of 2"),
        ("fsdp=64,dcn_fsdp=2,dcn_data=-1", 3, "3 slices do not divide by 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            resolve(parse_mesh(text) if text != "fsdp=0" else MeshConfig(fsdp=0), 64, slices)


def ids(mesh):
    return np.vectorize(lambda d: d.id)(mesh.devices)


def test_slices_of_virtual_devices():
    """Eight devices as two slices: the first four are one of them."""
    mesh = make_mesh(parse_mesh("dcn_data=2,fsdp=2,tensor=-1"))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "expert": 1, "context": 1, "tensor": 2}
    np.testing.assert_array_equal(ids(mesh).reshape(2, 4), np.arange(8).reshape(2, 4))
    mesh = make_mesh(parse_mesh("dcn_fsdp=2,data=2,fsdp=2"))  # fsdp goes through both slices, data stays within
    np.testing.assert_array_equal(ids(mesh).reshape(2, 4) // 4, [[0, 0, 1, 1], [0, 0, 1, 1]])
    with pytest.raises(ValueError, match="8 cpu devices do not make 3 slices"):
        make_mesh(MeshConfig(dcn_data=3))
    with pytest.raises(ValueError, match="takes 2 of the 4 devices of a slice; expected all"):
        make_mesh(MeshConfig(dcn_data=2, fsdp=2))


def test_a_smaller_mesh_takes_the_first_devices():
    assert ids(make_mesh(MeshConfig(fsdp=2))).ravel().tolist() == [0, 1]
    assert ids(make_mesh()).size == 1 and make_mesh(devices=jax.devices()[3:]).devices.item().id == 3


def test_a_mesh_without_devices():
    assert dict(abstract_mesh(parse_mesh("data=4,dcn_data=2,fsdp=256")).shape)["data"] == 8
    with pytest.raises(ValueError, match="-1 needs devices to count"):
        abstract_mesh(MeshConfig(fsdp=-1))


TOPOLOGIES = """
import json, numpy as np
from jax.experimental import topologies
from aqaa_jax.sharding.mesh import make_mesh, parse_mesh, ring_of
for name, slices, sizes in json.loads(input()):
    more = {"num_slices": slices} if slices > 1 else {}
    mesh = make_mesh(parse_mesh(sizes), topologies.get_topology_desc(name, platform="tpu", **more).devices)
    told = {}
    for i, axis in enumerate(mesh.axis_names):
        along = np.moveaxis(mesh.devices, i, 0).reshape(mesh.devices.shape[i], -1)[:, 0]
        places = np.array([(getattr(d, "slice_index", 0), *d.coords) for d in along])
        told[axis] = [len(set(column)) for column in places.T.tolist()]
    told["ring"] = ring_of(mesh, [axis for axis in ("fsdp", "context") if mesh.shape[axis] > 1])
    print(json.dumps(told))
"""


def test_axes_lie_along_the_torus():
    """Slices and coordinates that each axis goes through, in topologies that the TPU compiler knows; and rings of chips
    next to one another: whole closed axes of the torus that the devices of a weight begin with."""
    pytest.importorskip("libtpu")
    cases = [
        ("v5p:4x16x16", 1, "data=4,fsdp=-1", {"data": [1, 4, 1, 1], "fsdp": [1, 1, 16, 16], "ring": 16}),
        ("v5p:8x8x16", 1, "data=8,fsdp=128", {"data": [1, 1, 8, 1], "fsdp": [1, 8, 1, 16], "ring": 8}),
        (
            "v5p:8x8x16",
            1,
            "data=4,fsdp=256",
            {"data": [1, 1, 4, 1], "fsdp": [1, 8, 2, 16], "ring": 16},
        ),  # none make 256
        ("v5p:8x8x8", 2, "dcn_data=2,fsdp=512", {"data": [2, 1, 1, 1], "fsdp": [1, 8, 8, 8], "ring": 8}),
        ("v5p:4x4x4", 2, "dcn_fsdp=-1,fsdp=16,tensor=4", {"fsdp": [2, 1, 4, 4], "tensor": [1, 4, 1, 1], "ring": 1}),
        ("v5p:4x16x16", 1, "fsdp=256,context=4", {"fsdp": [1, 1, 16, 16], "ring": 16}),
        ("v5p:8x8x16", 1, "fsdp=256,context=4", {"fsdp": [1, 2, 8, 16], "ring": 16}),  # half of an axis comes last
        ("v5p:2x2x4", 1, "fsdp=16", {"fsdp": [1, 2, 2, 4], "ring": 1}),
        ("v6e:8x16", 1, "fsdp=128", {"ring": 1}),  # axes of v6e close at 16
        ("tpu7x:4x4x4", 1, "fsdp=128", {"ring": 4}),
    ]
    done = subprocess.run(
        [sys.executable, "-c", TOPOLOGIES],
        input=json.dumps([case[:3] for case in cases]),
        env=os.environ | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for (name, _, sizes, expected), found in zip(cases, told, strict=True):
        assert {axis: found[axis] for axis in expected} == expected, (name, sizes)
