"""Data: where images come from, how they are split, decoded, augmented and audited."""

from vl2v.data.audit import Audit, audit, set_aside
from vl2v.data.augment import domainbed_augment, evaluation_view
from vl2v.data.dataset import DomainDataset, Excluded
from vl2v.data.decoding import ImageError, decode, image_size
from vl2v.data.inspection import Inspection, inspect
from vl2v.data.layouts import open_dataset
from vl2v.data.objects import write_dataset
from vl2v.data.splits import Split, domainbed_split, hold_out, in_split, leave_out, seed_hash

__all__ = [
    "Audit",
    "DomainDataset",
    "Excluded",
    "ImageError",
    "Inspection",
    "Split",
    "audit",
    "decode",
    "domainbed_augment",
    "domainbed_split",
    "evaluation_view",
    "hold_out",
    "image_size",
    "in_split",
    "inspect",
    "leave_out",
    "open_dataset",
    "seed_hash",
    "set_aside",
    "write_dataset",
]
