"""Export: a student as one file that needs nothing of vl2v's training side, and on the Hugging Face hub."""

from vl2v.export.hub import parcel, push
from vl2v.export.onnx import Parity, export_onnx

__all__ = ["Parity", "export_onnx", "parcel", "push"]
