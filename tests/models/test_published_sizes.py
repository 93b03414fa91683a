"""Every published size in gin/models: its count is the tree's, Transformers' and the release's."""

import re
from pathlib import Path

import gin
import jax
import pytest

from jaxllm import cli
from jaxllm.errors import UserError
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import abstract_params
from tests.conftest import REPOSITORY

GIN = REPOSITORY / "gin" / "models"
ROWS = re.compile(r"^    '([\w.]+)': .*# ([\d,]+) parameters", re.MULTILINE)
# family and size -> the count that the row of its table states
STATED = {
    (path.stem, size): int(count.replace(",", ""))
    for path in sorted(GIN.glob("*.gin"))
    for size, count in ROWS.findall(path.read_text())
}
OURS = {("llama", "58m")}

# What the releases say: model cards, papers, and the safetensors metadata of the weights.
PUBLISHED = {
    "baichuan": {"7b": 7_000_559_616, "13b": 13_264_901_120},
    "baichuan2": {"7b": 7_505_973_248, "13b": 13_896_668_160},
    "deepseek_llm": {"7b": 6_910_365_696, "67b": 67_425_001_472},
    "gpt2": {
        "small": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200,
    },
    "gpt_neo": {"125m": 125_198_592, "1.3b": 1_315_575_808, "2.7b": 2_651_307_520},
    "gpt_neox": {"20b": 20_554_567_680},
    "llama": {
        "3b": 3_426_473_600, "amber_reproduce": 5_798_891_520, "7b": 6_738_415_616,
        "13b": 13_015_864_320, "33b": 32_528_943_616, "65b": 65_285_660_672,
    },
    "llama2": {"7b": 6_738_415_616, "13b": 13_015_864_320, "70b": 68_976_648_192},
    "mistral": {"7b": 7_241_732_096},
    "olmo": {"1b": 1_176_764_416, "7b": 6_888_095_744, "1.7_7b": 6_888_095_744},
    "olmo2": {
        "1b": 1_484_916_736, "7b": 7_298_617_344, "13b": 13_716_198_400, "32b": 32_234_279_936,
    },
    "opt": {
        "125m": 125_239_296, "1.3b": 1_315_758_080, "2.7b": 2_651_596_800, "6.7b": 6_658_473_984,
        "13b": 12_853_473_280, "30b": 29_974_540_288, "66b": 65_719_701_504,
        "175b": 174_604_468_224,
    },
    "opt_350m": {"350m": 331_196_416},
    "pythia": {
        "14m": 14_067_712, "31m": 30_494_720, "70m": 70_426_624, "160m": 162_322_944,
        "410m": 405_334_016, "1b": 1_011_781_632, "1.4b": 1_414_647_808, "2.8b": 2_775_208_960,
        "6.9b": 6_857_302_016, "12b": 11_846_072_320,
    },
    "qwen3": {
        "0.6b": 596_049_920, "1.7b": 1_720_574_976, "4b": 4_022_468_096, "8b": 8_190_735_360,
        "14b": 14_768_307_200, "32b": 32_762_123_264,
    },
    "skywork": {"13b": 13_854_113_280},
    "yi": {"6b": 6_061_035_520, "34b": 34_388_917_248},
}  # fmt: skip
COUNTS = {(name, size): n for name, rows in PUBLISHED.items() for size, n in rows.items()}

CLASSES = {
    "opt": "OPT", "opt_350m": "OPT", "pythia": "GPTNeoX", "gpt_neox": "GPTNeoX", "gpt2": "GPT2",
    "gpt_neo": "GPTNeo", "olmo": "Olmo", "olmo2": "Olmo2", "llama": "Llama", "llama2": "Llama",
    "yi": "Llama", "deepseek_llm": "Llama", "qwen3": "Qwen3",
}  # fmt: skip


def configured(family: str, size: str) -> ModelConfig:
    """The model of `gin/models/FAMILY.gin` at SIZE, found as a command finds it."""
    argv = [f"--gin_file=models/{family}.gin", f"--gin.SIZE={size}"]
    cli.load_gin(cli.parse(cli.parser("test"), argv))
    return ModelConfig()


def test_every_published_size_is_there_and_states_its_count() -> None:
    assert STATED.items() >= COUNTS.items()
    assert set(STATED) - set(COUNTS) == OURS
    families = {path.stem for path in GIN.glob("*.gin")} - {"sizes"}
    assert families == {family for family, _ in STATED}


@pytest.mark.parametrize(("family", "size"), STATED)
def test_counts_are_exact(family: str, size: str) -> None:
    config = configured(family, size)
    counted = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
    assert config.num_params == counted == STATED[family, size]


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_family_has_a_size_without_being_asked(family: str) -> None:
    cli.load_gin(cli.parse(cli.parser("test"), [f"--gin_file=models/{family}.gin"]))
    assert ModelConfig().num_params in PUBLISHED[family].values()


def test_an_unknown_size_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"^SIZE = '8b': must be one of 6b, 34b"):
        configured("yi", "8b")


def test_a_dimension_wins_over_the_size_and_is_stored_with_it(tmp_path: Path) -> None:
    argv = ["--gin_file=models/opt.gin", "--gin.SIZE=13b", "--gin.ModelConfig.num_layers=2"]
    cli.load_gin(cli.parse(cli.parser("test"), argv))
    config = ModelConfig()
    assert (config.num_layers, config.embed_dim) == (2, 5120)
    (tmp_path / "config.gin").write_text(gin.operative_config_str())
    gin.clear_config()
    cli.load_gin(cli.parse(cli.parser("test"), []), str(tmp_path))
    assert ModelConfig() == config


@pytest.mark.parametrize(
    ("family", "size"), [(family, size) for family, size in COUNTS if family in CLASSES]
)
def test_transformers_counts_the_same(family: str, size: str) -> None:
    """Its class at this shape, without memory, in all that the class can tell apart."""
    torch = pytest.importorskip("torch")
    families = pytest.importorskip("tests.models.transformers_families")
    with torch.device("meta"):
        model = families.empty(CLASSES[family], configured(family, size))
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[family, size]
