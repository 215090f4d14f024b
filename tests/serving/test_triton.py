"""Triton's own client against our server, and a model repository as Triton reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vl2v import Run
from vl2v.deploy.runtime import load
from vl2v.export.network import TRITON_BATCH as BATCH
from vl2v.export.network import model_file, write_config
from vl2v.export.student import export_student

from .conftest import Servers

triton = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'")


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"request_compression_algorithm": "gzip"},
        {"response_compression_algorithm": "deflate"},
        {"model_version": "1"},
        {"request_id": "seven"},
    ],
)
def test_its_client_works_with_its_defaults(
    binary: bool, options: dict[str, str], served: Servers, opened: Path, pixels: np.ndarray
) -> None:
    client = triton.InferenceServerClient(served().removeprefix("http://"))
    assert client.is_server_ready() and client.is_model_ready("student") and client.is_model_ready("student", "1")
    given = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    given.set_data_from_numpy(pixels, binary_data=binary)
    found = client.infer("student", [given], **options)
    student = load(opened)
    np.testing.assert_allclose(found.as_numpy("probabilities"), student.probabilities(pixels), atol=1e-5)
    assert found.get_response().get("id") == options.get("request_id")
    client.close()


def test_a_repository_describes_its_model(run: Run, tmp_path: Path, pixels: np.ndarray) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    configs = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="pip install 'tritonclient[grpc]'")
    folder = tmp_path / "models" / "shapes"
    model_file(folder).parent.mkdir(parents=True)
    export_student(run, model_file(folder), preprocess="outside", store=run.folder.with_name("store"))
    write_config(folder)
    config = text_format.Parse((folder / "config.pbtxt").read_text(), configs.ModelConfig())
    student = load(model_file(folder))
    assert (config.name, config.backend, config.max_batch_size) == ("shapes", "onnxruntime", BATCH)
    (given,), output = config.input, config.output[0]
    assert (given.data_type, list(given.dims)) == (configs.TYPE_UINT8, [32, 32, 3])
    assert student.run(np.repeat(pixels, BATCH // 2, 0)).shape == (config.max_batch_size, *output.dims)
    assert (folder / output.label_filename).read_text().split("\n")[:-1] == student.classes
    assert config.HasField("dynamic_batching")
