"""Facts about models and accelerators: YAML files with source and date, read into typed values."""

from batchinfer.catalog.accelerators import (
    GIB,
    MIB,
    Accelerator,
    Dtype,
    Price,
    accelerator,
    accelerators,
    list_price,
)
from batchinfer.catalog.hf_config import readable_architectures, shape_from_config
from batchinfer.catalog.hf_quantization import quantization_of_config
from batchinfer.catalog.models import (
    Checkpoint,
    EngineSupport,
    Licence,
    Model,
    Score,
    engine_support,
    find_model,
    licences,
    models,
    near_models,
)
from batchinfer.catalog.nodes import NodeLabels, node_labels
from batchinfer.catalog.quantization import FOUR_BIT_GROUPS, QUANTIZATIONS, Quantization, QuantizationName
from batchinfer.catalog.shape import Experts, LatentAttention, LinearAttention, ModelShape, ParameterCount

__all__ = [
    "FOUR_BIT_GROUPS",
    "GIB",
    "MIB",
    "QUANTIZATIONS",
    "Accelerator",
    "Checkpoint",
    "Dtype",
    "EngineSupport",
    "Experts",
    "LatentAttention",
    "Licence",
    "LinearAttention",
    "Model",
    "ModelShape",
    "NodeLabels",
    "ParameterCount",
    "Price",
    "Quantization",
    "QuantizationName",
    "Score",
    "accelerator",
    "accelerators",
    "engine_support",
    "find_model",
    "licences",
    "list_price",
    "models",
    "near_models",
    "node_labels",
    "quantization_of_config",
    "readable_architectures",
    "shape_from_config",
]
