"""insightface's own head: PartialFC_V2 of recognition/arcface_torch, imported from that folder, not copied."""

import sys
import tempfile
import warnings

import torch


def import_head(folder, device):
    """CombinedMarginLoss and PartialFC_V2, for one rank on `device`, "cpu" or "cuda"."""
    warnings.filterwarnings("ignore")
    sys.path.insert(0, folder)
    if device == "cpu":
        torch.Tensor.cuda = lambda tensor, *_: tensor  # PartialFC_V2 asks for the GPU by name
    store = f"file://{tempfile.mkdtemp()}/store"
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=store, rank=0, world_size=1)
    from losses import CombinedMarginLoss
    from partial_fc_v2 import PartialFC_V2

    return CombinedMarginLoss, PartialFC_V2
