"""The models of the catalog against figures that stand here on their own."""

import datetime
import pathlib

import pytest
import yaml

import batchinfer.catalog
from batchinfer.catalog import QUANTIZATIONS, engine_support, find_model, licences, models, near_models

FOLDER = pathlib.Path(batchinfer.catalog.__file__).parent / "models"

PARAMETERS = {
    "mistral-7b": 7_248_023_552,
    "mistral-7b-v0.1": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_630_071_296,
    "mistral-large": 122_610_069_504,
    "mistral-small-24b": 23_572_403_200,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "codellama-7b": 6_738_546_688,
    "codellama-13b": 13_016_028_160,
    "codellama-34b": 33_743_970_304,
    "codellama-70b": 68_976_910_336,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-4-scout": 107_769_861_120,
    "llama-4-maverick": 400_711_848_960,
    "openhermes-2.5": 7_241_748_480,
    "nous-hermes-2-mixtral-8x7b": 46_702_809_088,
    "phi-2": 2_779_683_840,
    "phi-3.5-mini": 3_821_079_552,
    "command-r-plus": 103_810_674_688,
    "falcon-180b": 179_522_565_120,
    "mpt-7b": 6_649_286_656,
    "mpt-30b": 29_957_200_896,
    "yi-34b": 34_388_917_248,
    "qwen-72b": 72_287_920_128,
    "qwen1.5-72b": 72_287_920_128,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "deepseek-v3": 671_026_419_200,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "gemma-3-1b": 999_885_952,
    "kimi-k2": 1_026_408_232_448,
    "minimax-m2.5": 228_689_764_864,
    "olmo-3-7b": 7_298_011_136,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
    "qwen3-embedding-8b": 7_567_295_488,
    "qwen3.5-27b": 26_895_998_464,
    "qwen3.5-35b-a3b": 34_660_610_688,
}
"""Totals of the published files, where they could be read, or of their config.json; DeepSeek's with the score
corrections of its experts."""

KV_BYTES_PER_TOKEN = {
    "mistral-7b": 131_072,
    "mixtral-8x22b": 229_376,
    "mistral-large": 360_448,
    "llama-2-13b": 819_200,
    "codellama-34b": 196_608,
    "llama-3.1-8b": 131_072,
    "llama-3.1-70b": 327_680,
    "llama-3.1-405b": 516_096,
    "llama-3.2-3b": 114_688,
    "llama-4-scout": 196_608,
    "phi-2": 327_680,
    "phi-3.5-mini": 393_216,
    "command-r-plus": 262_144,
    "falcon-180b": 163_840,
    "mpt-30b": 1_376_256,
    "yi-34b": 245_760,
    "qwen-72b": 2_621_440,
    "qwen2.5-7b": 57_344,
    "qwen3-4b": 147_456,
    "qwen3-235b-a22b": 192_512,
    "qwen3-coder-480b-a35b": 253_952,
    "deepseek-r1": 70_272,
    "gpt-oss-120b": 73_728,
    "gpt-oss-20b": 49_152,
}
"""In 16 bits, of a token that every layer still holds."""

ARTICLES_NAME = [
    "mistralai/Mistral-7B-Instruct-v0.3",
    "mistralai/Mistral-7B-Instruct-v0.2",
    "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "mistralai/Mistral-Large-Instruct-2407",
    "mistralai/Mistral-Large-Instruct-2411",
    "meta-llama/Llama-2-7b-chat-hf",
    "meta-llama/Llama-2-13b-chat-hf",
    "meta-llama/Llama-2-70b-chat-hf",
    "meta-llama/Meta-Llama-3-8B-Instruct",
    "meta-llama/Meta-Llama-3-70B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
    "codellama/CodeLlama-7b-Instruct-hf",
    "codellama/CodeLlama-13b-Instruct-hf",
    "codellama/CodeLlama-34b-Instruct-hf",
    "teknium/OpenHermes-2.5-Mistral-7B",
    "NousResearch/Nous-Hermes-2-Mixtral-8x7B-DPO",
    "NousResearch/Nous-Hermes-2-Mistral-7B-DPO",
    "microsoft/phi-2",
    "microsoft/Phi-3.5-mini-instruct",
    "CohereForAI/c4ai-command-r-plus",
    "CohereLabs/c4ai-command-r-plus",
    "tiiuae/falcon-180B",
    "Qwen/Qwen-72B",
    "Qwen/Qwen-72B-Chat",
    "mosaicml/mpt-7b-instruct",
    "mosaicml/mpt-30b-instruct",
    "01-ai/Yi-34B-Chat",
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen3-32B",
    "meta-llama/Llama-3.1-405B-Instruct",
    "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "mistralai/Mistral-Small-24B-Instruct-2501",
    "deepseek-ai/DeepSeek-V3",
    "deepseek-ai/DeepSeek-R1",
    "openai/gpt-oss-120b",
    "openai/gpt-oss-20b",
]


@pytest.mark.parametrize(("name", "total"), PARAMETERS.items())
def test_the_parameters_computed_from_the_dimensions_are_the_published_ones(name, total):
    assert models()[name].shape.parameters().total == total


@pytest.mark.parametrize(
    ("name", "published", "with_embedding"),
    [
        ("mixtral-8x7b", 12.88e9, True),
        ("mixtral-8x22b", 39.16e9, True),
        ("llama-4-scout", 17.17e9, True),
        ("llama-4-maverick", 17.19e9, True),
        ("qwen3-30b-a3b", 3.35e9, True),
        ("qwen3-235b-a22b", 22.19e9, True),
        ("deepseek-v3", 36.6e9, False),
        ("gpt-oss-120b", 5.13e9, False),
        ("gpt-oss-20b", 3.61e9, False),
    ],
)
def test_active_parameters_are_the_published_ones(name, published, with_embedding):
    """Ours count the head, which every token is multiplied with, and not the embedding, which is a lookup;
    `with_embedding`: the published figure counts both."""
    parameters = models()[name].shape.parameters()
    ours = parameters.active + (parameters.embedding if with_embedding else 0)
    assert ours == pytest.approx(published, rel=0.002)


@pytest.mark.parametrize(("name", "size"), KV_BYTES_PER_TOKEN.items())
def test_the_kv_cache_takes_the_published_bytes_per_token(name, size):
    assert models()[name].shape.kv_bytes(1) == size


def test_linear_attention_holds_a_state_of_one_size_and_no_cache():
    shape = models()["qwen3.5-27b"].shape
    # 16 layers of 4 KV heads of 256 in 16 bits; 48 layers of a state of 48 x 128 x 128 in 32 bits, and three inputs of
    # the convolution over 2 x 16 x 128 + 48 x 128.
    state = 48 * (48 * 128 * 128 * 4 + (2 * 16 * 128 + 48 * 128) * 3 * 2)
    assert shape.kv_bytes(1000) == 65_536 * 1000 + state
    assert shape.kv_bytes(1000, tensor_parallel=2) == 32_768 * 1000 + state / 2


def test_windowed_layers_hold_no_more_than_their_window():
    assert models()["gpt-oss-120b"].shape.kv_bytes(100_000) == 36_864 * 100_000 + 36_864 * 128
    assert models()["llama-4-scout"].shape.kv_bytes(32_768) == 4096 * (12 * 32_768 + 36 * 8192)
    assert models()["openhermes-2.5"].shape.kv_bytes(32_768) == 131_072 * 4096


@pytest.mark.parametrize("repository", ARTICLES_NAME)
def test_every_model_that_the_articles_name_answers_to_its_repository(repository):
    model = find_model(repository)
    assert model is not None
    assert repository in model.repositories()


def test_a_model_answers_to_all_its_names_in_any_case():
    llama = models()["llama-3.1-8b"]
    assert find_model("LLAMA-3.1-8B") is llama
    assert find_model("meta-llama/meta-llama-3.1-8b-instruct") is llama
    assert find_model("nvidia/Llama-3.1-8B-Instruct-FP8") is llama
    assert find_model("llama-9") is None


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("llama-3.1-8b", "none"),
        ("nvidia/llama-3.1-8b-instruct-fp8", "fp8"),
        ("nvidia/Llama-3.1-405B-Instruct-FP8", "fp8"),
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8", "fp8"),
        ("nvidia/Llama-3.3-70B-Instruct-FP4", "nvfp4"),
        ("TechxGenus/Mistral-Large-Instruct-2411-AWQ", "awq"),
        ("deepseek-ai/DeepSeek-R1", "fp8"),
        ("openai/gpt-oss-20b", "mxfp4"),
    ],
)
def test_what_a_name_stands_for_is_stored_in_a_known_quantization(name, quantization):
    model = find_model(name)
    assert model is not None
    assert model.stored_as(name) == quantization


def test_a_repository_of_another_model_is_no_name_of_this_one():
    with pytest.raises(KeyError):
        models()["llama-3.1-8b"].stored_as("meta-llama/Llama-3.1-70B-Instruct")


def test_no_two_models_answer_to_one_name():
    names = [name.lower() for model in models().values() for name in (model.name, *model.repositories())]
    assert sorted(names) == sorted(set(names))


def test_each_file_is_a_family_and_none_is_left_out():
    files = {path.stem: list(yaml.safe_load(path.read_text())) for path in FOLDER.glob("*.yaml")}
    assert {model.family for model in models().values()} == set(files)
    assert sorted(name for names in files.values() for name in names) == sorted(models())


@pytest.mark.parametrize("name", models())
def test_an_entry_says_where_its_facts_are_from(name):
    model = models()[name]
    assert model.source.strip()
    assert model.date >= datetime.date(2026, 1, 1)
    assert model.licence.forbids.strip()
    assert all(0 < score.value <= 100 and score.source.strip() for score in model.scores)
    assert set(model.checkpoints) <= set(QUANTIZATIONS) - {"none"}
    assert model.native not in model.checkpoints


@pytest.mark.parametrize("name", models())
def test_what_was_not_read_in_a_source_is_marked(name):
    """Licences but one, and gates, are general knowledge; so are dimensions whose source says so."""
    model = models()[name]
    assert "gated" in model.unverified
    assert ("licence" in model.unverified) != model.licence.verified
    assert ("general knowledge" in model.source) == ("shape" in model.unverified)


@pytest.mark.parametrize("name", [name for name, model in models().items() if model.thinking is not None])
def test_how_a_model_thinks_has_a_source_and_a_date(name):
    """What was not read in the source says so, and is not marked as read."""
    thinking = models()[name].thinking
    assert thinking.source.strip()
    assert thinking.date >= datetime.date(2026, 1, 1)
    assert thinking.verified != ("general knowledge" in thinking.source)


@pytest.mark.parametrize(
    ("name", "parser", "switch", "verified"),
    [
        ("qwen3-0.6b", "qwen3", "enable_thinking", True),
        ("qwen3-235b-a22b", "qwen3", "enable_thinking", True),
        ("deepseek-r1", "deepseek_r1", None, True),
        ("gpt-oss-120b", "openai_gptoss", None, False),
    ],
)
def test_the_catalog_says_how_thinking_is_told_apart_and_switched_off(name, parser, switch, verified):
    thinking = models()[name].thinking
    assert (thinking.parser, thinking.switch, thinking.verified) == (parser, switch, verified)


def test_models_that_answer_at_once_have_no_thinking():
    assert [name for name in ("qwen3-coder-480b-a35b", "deepseek-v3", "qwen2.5-7b") if models()[name].thinking] == []


@pytest.mark.parametrize(
    ("name", "benchmark", "verified"),
    [
        ("llama-3.3-70b", "HumanEval", True),
        ("llama-3.1-8b", "GSM8K", False),
        ("mistral-large", "MMLU", False),
        ("falcon-180b", "MMLU", False),
        ("deepseek-v3", "MMLU", True),
        ("gpt-oss-120b", "MMLU", False),
    ],
)
def test_scores_say_whether_they_were_read(name, benchmark, verified):
    (score,) = [score for score in models()[name].scores if score.benchmark == benchmark]
    assert score.verified is verified


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("qwen3-14b", "shape"),
        ("nous-hermes-2-mistral-7b", "shape"),
        ("falcon-180b", "tied_embeddings"),
        ("llama-4-scout", "windowed_layers"),
        ("llama-4-maverick", "windowed_layers"),
        ("qwen2.5-7b", "context"),
        ("mistral-small-3.1-24b", "architecture"),
    ],
)
def test_doubtful_dimensions_are_marked(name, field):
    assert field in models()[name].unverified


@pytest.mark.parametrize(
    ("name", "commercial"),
    [("mistral-large", False), ("command-r-plus", False), ("mixtral-8x7b", True), ("qwen2.5-3b", False)],
)
def test_a_licence_says_whether_it_allows_commercial_use(name, commercial):
    licence = models()[name].licence
    assert licence.commercial_use is commercial
    assert commercial or "no commercial use" in licence.forbids


def test_every_licence_is_somebodys():
    used = {model.licence for model in models().values()}
    assert used == set(licences().values())


def test_what_the_engine_dropped_names_a_replacement_that_it_runs():
    dropped = {model.name: model for model in models().values() if model.engine.until}
    assert {name: (m.engine.until, m.replacement) for name, m in dropped.items()} == {
        "mpt-7b": ("0.28.0", "mistral-7b"),
        "mpt-30b": ("0.28.0", "qwen2.5-32b"),
        "qwen-72b": ("0.23.0", "qwen1.5-72b"),
    }
    assert all(models()[str(model.replacement)].engine.until is None for model in dropped.values())


@pytest.mark.end_to_end
def test_the_engine_agrees_with_the_catalog_on_what_it_runs():
    from vllm.model_executor.models import registry

    for model in models().values():
        architecture, support = model.shape.architecture, model.engine
        assert support == engine_support(architecture)
        assert registry._PREVIOUSLY_SUPPORTED_MODELS.get(architecture) == support.until
        assert (architecture in registry.ModelRegistry.get_supported_archs()) == (support.until is None)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("llama3.1-8b", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B-Instuct", "llama-3.1-8b"),
        ("Mixtral 8x7b", "mixtral-8x7b"),
        ("mistral-7b-instruct", "mistral-7b"),
        ("command r+", "command-r-plus"),
    ],
)
def test_a_misspelt_name_finds_the_model_that_was_meant(typed, meant):
    assert near_models(typed)[0] == meant


def test_a_name_like_no_model_finds_none():
    assert near_models("zzzzzzzz") == []
