import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.catalog import QUANTIZATIONS, models
from batchinfer.planner.layout import (
    Nodes,
    ReplicaLayout,
    layouts,
    nodes_of,
    pays_expert_parallel,
    replicas_that_fit,
    tensor_problem,
    tensor_sizes,
)

NONE, FP8, AWQ = QUANTIZATIONS["none"], QUANTIZATIONS["fp8"], QUANTIZATIONS["awq"]


def shape(name):
    return models()[name].shape


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("qwen2.5-7b", [1, 2, 4]),
        ("qwen2.5-0.5b", [1, 2]),
        ("qwen2.5-1.5b", [1, 2, 4]),
        ("qwen2.5-14b", [1, 2, 4, 8]),
        ("yi-34b", [1, 2, 4, 8]),
        ("llama-4-scout", [1, 2, 4, 8]),
        ("falcon-180b", [1, 2, 4, 8]),
        ("llama-3.2-3b", [1, 2, 4, 8]),
        ("phi-2", [1, 2, 4, 8, 16, 32]),
        ("mixtral-8x7b", [1, 2, 4, 8, 16, 32]),
        ("deepseek-v3", [1, 2, 4, 8, 16, 32, 64]),
    ],
)
def test_a_model_is_cut_where_its_heads_divide(name, sizes):
    limit = 8 if sizes[-1] <= 8 else 64
    assert tensor_sizes(shape(name), NONE, limit) == sizes


@pytest.mark.parametrize(
    ("name", "quantization", "tensor", "reason"),
    [
        ("qwen2.5-7b", NONE, 8, "28 attention heads do not divide by 8"),
        ("qwen2.5-7b", NONE, 7, "4 KV heads do not divide by 7"),
        ("qwen2.5-72b", AWQ, 8, "intermediate size 29,568 cut in 8 leaves no whole blocks of 128"),
    ],
)
def test_what_cannot_be_cut_says_why(name, quantization, tensor, reason):
    assert reason in tensor_problem(shape(name), quantization, tensor)


def test_experts_go_whole_where_cutting_would_break_their_quantization_blocks():
    # Experts of 1536: a quarter is 3 blocks of 128, an eighth is one and a half.
    qwen = shape("qwen3-235b-a22b")
    assert not pays_expert_parallel(qwen, FP8, 4)
    assert pays_expert_parallel(qwen, FP8, 8)
    assert tensor_problem(qwen, FP8, 8) is None
    assert not pays_expert_parallel(shape("mixtral-8x7b"), FP8, 8)
    assert not pays_expert_parallel(shape("llama-3.1-8b"), FP8, 8)


def found(name, quantization, nodes, fits, **asked):
    return [str(layout) for layout in layouts(shape(name), quantization, nodes, fits, **asked)]


def test_one_node_goes_before_two_and_tensor_parallel_stays_inside():
    two = Nodes(16, 8)
    assert found("llama-3.1-405b", NONE, two, lambda layout: layout.gpus >= 16) == [
        "TP1",
        "TP2",
        "TP4",
        "TP8",
        "TP8 PP2",
    ]
    assert all(layout.nodes == 1 for layout in layouts(shape("llama-3.1-405b"), NONE, two, lambda one: one.gpus >= 8))
    assert found("llama-3.1-405b", NONE, Nodes(8, 8), lambda layout: layout.gpus >= 16) == ["TP1", "TP2", "TP4", "TP8"]


def test_heads_that_stop_dividing_leave_the_rest_of_a_node_to_the_pipeline():
    assert found("qwen2.5-7b", NONE, Nodes(8, 8), lambda layout: layout.gpus >= 8)[-2:] == ["TP4", "TP4 PP2"]
    assert found("qwen2.5-7b", NONE, Nodes(16, 8), lambda layout: layout.gpus >= 16)[-1] == "TP4 PP4"


def test_what_the_user_settled_is_all_that_is_looked_at():
    assert found("llama-3.1-8b", NONE, Nodes(8, 8), lambda _: True, tensor=4) == ["TP4"]
    assert found("llama-3.1-8b", NONE, Nodes(16, 8), lambda _: True, tensor=8, pipeline=2) == ["TP8 PP2"]


@pytest.mark.parametrize(
    ("tensor", "pipeline", "nodes", "replicas"),
    [
        (1, 1, Nodes(9, 8), 9),
        (2, 2, Nodes(9, 9), 2),
        (4, 1, Nodes(16, 6), 3),
        (8, 2, Nodes(40, 8), 2),
        (4, 3, Nodes(16, 8), 1),
    ],
)
def test_replicas_are_packed_by_node(tensor, pipeline, nodes, replicas):
    layout = ReplicaLayout(tensor, pipeline, False, nodes_of(tensor, pipeline, nodes.per_node))
    assert replicas_that_fit(layout, nodes) == replicas


@settings(deadline=None, max_examples=200)
@given(
    name=st.sampled_from(sorted(models())),
    quantization=st.sampled_from(sorted(QUANTIZATIONS)),
    per_node=st.integers(1, 8),
    count=st.integers(1, 4),
    least=st.integers(1, 40),
)
def test_every_layout_divides_stays_in_the_cluster_and_keeps_groups_on_a_node(
    name, quantization, per_node, count, least
):
    model, nodes = shape(name), Nodes(per_node * count, per_node)

    def fitting(nodes):
        made = layouts(model, QUANTIZATIONS[quantization], nodes, lambda layout: layout.gpus >= least)
        return [layout for layout in made if layout.gpus >= least]

    for layout in fitting(nodes):
        assert layout.tensor == 1 or tensor_problem(model, QUANTIZATIONS[quantization], layout.tensor) is None
        assert model.attention_heads % layout.tensor == 0
        assert layout.tensor <= per_node
        assert layout.pipeline <= model.layers
        assert layout.nodes <= count
        assert replicas_that_fit(layout, nodes) >= 1
    if fitting(nodes):
        assert fitting(Nodes(per_node * (count + 1), per_node))
