"""Every published size in gin/models: its count is the tree's, Transformers' and the release's."""

import re
from collections.abc import Iterator

import gin
import jax
import pytest

from jaxllm import cli
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import abstract_params
from tests.conftest import REPOSITORY

FILES = {path.stem: path for path in sorted((REPOSITORY / "gin" / "models").glob("*.gin"))}
# a file that others include; and the two that are ours
NOT_PUBLISHED = {
    "llama", "opt", "gpt_neox", "gpt2", "gpt_neo", "olmo", "olmo2", "llama_small", "llama_tiny"
}  # fmt: skip

# What the releases say: model cards, papers, and the safetensors metadata of the weights.
PUBLISHED = {
    "openllama_3b": 3_426_473_600, "openllama_7b": 6_738_415_616, "openllama_13b": 13_015_864_320,
    "amber_7b": 6_738_415_616, "amber_reproduce": 5_798_891_520,
    "llama_7b": 6_738_415_616, "llama_13b": 13_015_864_320, "llama_33b": 32_528_943_616,
    "llama_65b": 65_285_660_672,
    "llama2_7b": 6_738_415_616, "llama2_13b": 13_015_864_320, "llama2_70b": 68_976_648_192,
    "yi_6b": 6_061_035_520, "yi_34b": 34_388_917_248,
    "deepseek_llm_7b": 6_910_365_696, "deepseek_llm_67b": 67_425_001_472,
    "baichuan_7b": 7_000_559_616, "baichuan_13b": 13_264_901_120,
    "baichuan2_7b": 7_505_973_248, "baichuan2_13b": 13_896_668_160,
    "skywork_13b": 13_854_113_280,
    "opt_125m": 125_239_296, "opt_350m": 331_196_416, "opt_1_3b": 1_315_758_080,
    "opt_2_7b": 2_651_596_800, "opt_6_7b": 6_658_473_984, "opt_13b": 12_853_473_280,
    "opt_30b": 29_974_540_288, "opt_66b": 65_719_701_504, "opt_175b": 174_604_468_224,
    "pythia_14m": 14_067_712, "pythia_31m": 30_494_720, "pythia_70m": 70_426_624,
    "pythia_160m": 162_322_944, "pythia_410m": 405_334_016, "pythia_1b": 1_011_781_632,
    "pythia_1_4b": 1_414_647_808, "pythia_2_8b": 2_775_208_960, "pythia_6_9b": 6_857_302_016,
    "pythia_12b": 11_846_072_320, "gpt_neox_20b": 20_554_567_680,
    "gpt2_small": 124_439_808, "gpt2_medium": 354_823_168, "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "gpt_neo_125m": 125_198_592, "gpt_neo_1_3b": 1_315_575_808, "gpt_neo_2_7b": 2_651_307_520,
    "olmo_1b": 1_176_764_416, "olmo_7b": 6_888_095_744, "olmo_1_7_7b": 6_888_095_744,
    "olmo2_1b": 1_484_916_736, "olmo2_7b": 7_298_617_344, "olmo2_13b": 13_716_198_400,
    "olmo2_32b": 32_234_279_936,
}  # fmt: skip

CLASSES = {
    "opt": "OPT", "pythia": "GPTNeoX", "gpt_neox": "GPTNeoX", "gpt2": "GPT2", "gpt_neo": "GPTNeo",
    "olmo": "Olmo", "olmo2": "Olmo2", "llama": "Llama", "llama2": "Llama", "openllama": "Llama",
    "amber": "Llama", "yi": "Llama", "deepseek_llm": "Llama",
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_gin() -> Iterator[None]:
    gin.clear_config()
    yield
    gin.clear_config()


def configured(name: str) -> ModelConfig:
    """The model of `gin/models/NAME.gin`, found as a command finds it."""
    cli.load_gin(cli.parse(cli.parser("test"), [f"--gin_file=models/{name}.gin"]))
    return ModelConfig()


def family(name: str) -> str:
    return max((known for known in CLASSES if name.startswith(f"{known}_")), key=len, default="")


def test_every_published_size_is_there() -> None:
    assert set(PUBLISHED) == set(FILES) - NOT_PUBLISHED


@pytest.mark.parametrize("name", FILES)
def test_counts_are_exact(name: str) -> None:
    config = configured(name)
    counted = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
    assert config.num_params == counted == PUBLISHED.get(name, counted)
    if name in PUBLISHED:
        stated = re.search(r"([\d,]{9,}) parameters", FILES[name].read_text())
        assert stated and int(stated[1].replace(",", "")) == counted


@pytest.mark.parametrize("name", [name for name in PUBLISHED if family(name)])
def test_transformers_counts_the_same(name: str) -> None:
    """Its class at this shape, without memory, in all that the class can tell apart."""
    torch = pytest.importorskip("torch")
    families = pytest.importorskip("tests.models.transformers_families")
    with torch.device("meta"):
        model = families.empty(CLASSES[family(name)], configured(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]
