"""The other formats: OpenVINO from an ONNX file, TorchScript and ExecuTorch from the network."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from vl2v.deploy.runtime import METADATA, openvino_library
from vl2v.errors import need_extra
from vl2v.export.network import Network


def write_openvino(source: Path, card: dict[str, Any], path: Path) -> None:
    """Write an ONNX file, fp32 or int8, as OpenVINO's `path` (.xml) and the weights beside it (.bin)."""
    openvino = openvino_library()
    model = openvino.Core().read_model(str(source))
    if model.input(0).partial_shape.rank.is_dynamic:  # an image or a batch of any size: here always a batch
        model.reshape([-1, -1, -1, 3])
    model.set_rt_info(json.dumps(card), METADATA)
    openvino.save_model(model, str(path), compress_to_fp16=False)


def write_torchscript(network: Network, card: dict[str, Any], path: Path) -> None:
    """Write a network for LibTorch; torch calls TorchScript deprecated, and still reads and writes it."""
    plain = path.with_name("traced.pt")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the deprecation, and of sizes that a trace takes for constants
        traced = torch.jit.freeze(torch.jit.trace(network, (network.example,), check_trace=False))
        traced.save(str(plain), _extra_files={METADATA: json.dumps(card)})
    _forget_sources(plain, path)


def _forget_sources(plain: Path, path: Path) -> None:
    """Copy an archive without what it notes of where each line comes from: paths of this machine."""
    reader = torch._C.PyTorchFileReader(str(plain))
    writer = torch._C.PyTorchFileWriter(str(path))
    for name in reader.get_all_records():
        if not name.endswith(".debug_pkl") and name not in ("version", "byteorder", ".data/serialization_id"):
            data = reader.get_record(name)
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()


def write_executorch(network: Network, card: dict[str, Any], path: Path) -> None:
    """Write a network for phones, its layers computed by XNNPACK; one image at a time.

    (ExecuTorch 1.5 narrows a range of batch sizes as it lowers: of 1 to 64 it left 2 to 15.)
    """
    need_extra("executorch.exir", "executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(network, (network.example[:1],))
    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA: json.dumps(card)}
    )
    path.write_bytes(lowered.to_executorch().buffer)
