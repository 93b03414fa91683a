"""Published results become records with the right run, clock, doubt and chance level."""

import gzip
import json
import math

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis import onsets
from jaxllm.analysis.curves import curves
from jaxllm.errors import UserError
from jaxllm.interop.importers import known_tasks, open_source
from jaxllm.interop.importers.pythia import PARAMS
from jaxllm.interop.importers.table import Settings, family_of, size_in_name, to_results
from jaxllm.run.records import COLUMNS, shown_name
from tests.simulated_run import simulate

# As lm-evaluation-harness 0.3 wrote it; 0.4 below.
OLD = {
    "results": {
        "arc_easy": {"acc": 0.5, "acc_stderr": 0.05025, "acc_norm": 0.4, "acc_norm_stderr": 0.0492},
        "hendrycksTest-anatomy": {"acc": 0.3, "acc_stderr": 0.04606},
        "lambada_openai": {"ppl": 12.5, "ppl_stderr": 0.4, "acc": 0.0, "acc_stderr": 0.0},
    },
    "versions": {"arc_easy": 0, "hendrycksTest-anatomy": 1, "lambada_openai": 0},
    "config": {"model": "hf", "model_args": "pretrained=org/tiny-125m,revision=step3000",
               "num_fewshot": 5},
}  # fmt: skip
NEW = {
    "results": {
        "arc_easy": {"alias": "arc_easy", "acc,none": 0.5, "acc_stderr,none": 0.02,
                     "acc_norm,none": 0.6, "acc_norm_stderr,none": 0.02},
        "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.02,
                  "exact_match_stderr,strict-match": 0.004,
                  "exact_match,flexible-extract": 0.03, "exact_match_stderr,flexible-extract": 0.1},
        "mmlu": {"alias": "mmlu", "acc,none": 0.3, "acc_stderr,none": "N/A"},
        "mmlu_anatomy": {"alias": " - anatomy", "acc,none": 0.31, "acc_stderr,none": 0.04,
                         "sample_len": 135},
        "new_task": {"score,none": 3.0, "score_stderr,none": 0.5},
    },
    "group_subtasks": {"mmlu": ["mmlu_anatomy"]},
    "versions": {"arc_easy": 1.0, "gsm8k": 3.0, "mmlu": 2, "mmlu_anatomy": 1.0},
    "n-shot": {"arc_easy": 0, "gsm8k": 5, "mmlu_anatomy": 5},
    "n-samples": {"arc_easy": {"original": 2376, "effective": 500}},
    "config": {"model": "hf", "model_num_parameters": 7_000_000,
               "model_args": "pretrained=org/OLMo,revision=step2000-tokens8B"},
}  # fmt: skip


def write(path, content) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def one(records: pd.DataFrame, task: str, metric: str = "accuracy") -> pd.Series:
    found = records[(records.task == task) & (records.metric == metric)]
    assert len(found) == 1
    return found.iloc[0]


def test_harness_03(tmp_path) -> None:
    path = write(tmp_path / "r.json", OLD)
    source = open_source(f"harness:{path}?tokens_per_step=1000")
    records = source.records
    assert tuple(records.columns) == COLUMNS
    arc = one(records, "arc_easy 5-shot")
    # 0.05025 = sqrt(0.5 * 0.5 / 99): a hundred examples
    assert (arc.n, arc.chance, arc.domain, arc.shots) == (100, 0.25, "commonsense", 5)
    assert (arc.run, arc.family, arc.params) == ("tiny-125m", "tiny", 125_000_000)
    assert (arc.step, arc.tokens, arc.flops) == (3000, 3_000_000, 6.0 * 125e6 * 3e6)
    assert one(records, "mmlu_anatomy 5-shot").task_version == "1"
    assert arc.primary and not one(records, "arc_easy 5-shot", "accuracy_per_char").primary
    perplexity = one(records, "lambada_openai 5-shot", "perplexity")
    assert perplexity.stderr == 0.4 and math.isnan(perplexity.chance) and not perplexity.primary
    assert source.problems == ()


def test_harness_04(tmp_path) -> None:
    write(tmp_path / "org__OLMo" / "results_2024-01-01.json", NEW)
    write(tmp_path / "org__OLMo" / "samples_arc_easy_2024.jsonl", '{"doc_id": 0}\n')
    write(tmp_path / "other.json", {"not": "a result"})
    source = open_source(f"harness:{tmp_path}")
    records = source.records
    assert set(records.tokens) == {8_000_000_000} and set(records.step) == {2000}
    assert set(records.params) == {7_000_000}
    assert one(records, "arc_easy").n == 500
    assert one(records, "mmlu_anatomy 5-shot").n == 135
    group = one(records, "mmlu 5-shot")
    assert group.shots == 5 and math.isnan(group.stderr)
    strict = one(records, "gsm8k 5-shot", "exact_match_strict_match")
    assert (strict.value, strict.stderr, strict.chance, strict.primary) == (0.02, 0.004, 0.0, True)
    assert any("new_task" in problem for problem in source.problems)
    assert one(records, "new_task", "score").primary


def test_what_a_file_does_not_say_is_missing_and_said(tmp_path) -> None:
    path = write(tmp_path / "final.json", {"results": {"arc_easy": {"acc": 0.5}}})
    source = open_source(f"harness:{path}")
    assert source.records.tokens.isna().all() and source.records.params.isna().all()
    for word in ("step", "tokens", "parameters"):
        assert any(f"{word} " in problem and "known" in problem for problem in source.problems)
    said = open_source(
        f"harness:{path}?step=10&tokens_per_step=5&params=1e6&run=x&family=y"
    ).records
    assert said.iloc[0][["run", "family", "step", "tokens"]].tolist() == ["x", "y", 10, 50]


def test_pythia_directory_and_lines_agree(tmp_path) -> None:
    result = {key: OLD[key] for key in ("results", "versions")}
    result["config"] = {"model": "neox", "model_args": {"save": "x"}, "num_fewshot": 0}
    places = {
        "pythia-v1/pythia-160m-deduped/zero-shot/160m-deduped_step512.json": 512 * 2**21,
        "pythia-v1/pythia-12b/five-shot/12b-5shot_step143000.json": 143_000 * 2**21,
        "pythia-v0/pythia-410m/five-shot/pythia-410m-5shot-global_step71500_e_12-1.json":
            143_000 * 2**21,
        "pythia-v0/pythia-70m/zero-shot/pythia-70m-0shot-global_step3000_e.json": 3000 * 2**21,
        "pythia-v1/pythia-70m-0.25MtokBS/five-shot/70m-0.25MtokBS_step24000.json": 3000 * 2**21,
        "pythia-v1/pythia-1b-bf16/zero-shot/1b-bf16_step0.json": 0,
    }  # fmt: skip
    lines = []
    for place in places:
        write(tmp_path / "evals" / place, result)
        lines.append(json.dumps({"path": f"evals/{place}", **result}))
    packed = tmp_path / "runs.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(lines).encode()))
    source = open_source(f"pythia:{tmp_path / 'evals'}")
    files, problems = source.records, source.problems
    pd.testing.assert_frame_equal(files, open_source(f"pythia:{packed}").records)
    by_run = files.groupby("run").first()
    assert sorted(by_run.tokens) == sorted(places.values())
    assert by_run.family.to_dict() == {
        "pythia-12b": "pythia", "pythia-160m-deduped": "pythia-deduped",
        "pythia-1b-bf16": "pythia", "pythia-410m-v0": "pythia-v0", "pythia-70m-v0": "pythia-v0",
        "pythia-70m-0.25MtokBS": "pythia-0.25MtokBS",
    }  # fmt: skip
    assert by_run.params["pythia-12b"] == PARAMS["12b"]
    # Its file says 0 shots, and has the values of its zero-shot twin.
    assert by_run.shots["pythia-410m-v0"] == 0
    assert any("pythia-410m-v0: files in a folder of 5 shots state 0" in p for p in problems)


def test_whole_published_set_is_complete(shared_data) -> None:
    source = open_source(f"pythia:{shared_data / 'reference' / 'pythia'}")
    records = source.records
    assert (records.status == "ok").all() and records.value.notna().all()
    trained = records[records.family.str.startswith("pythia")]
    assert trained.run.nunique() == 31
    assert set(trained.groupby("run").tokens.max()) == {143_000 * 2**21}
    # What the benchmarks' own papers say of their size, here worked out from standard errors.
    examples = records[records.metric == "accuracy"].groupby("task").n.median()
    published = {"arc_easy": 2376, "arc_challenge": 1172, "piqa": 1838, "winogrande": 1267,
                 "lambada_openai": 5153, "sciq": 1000, "logiqa": 651, "wsc": 104}  # fmt: skip
    for task, n in published.items():
        assert examples[task] == examples.get(f"{task} 5-shot", n) == n
    key = ["run", "task", "step", "metric", "task_version"]
    assert not records.duplicated(key).any()
    # Five folders of v0 hold their zero-shot results again, scored a second time.
    assert any("10,276 records are repeated" in p and "148 of them" in p for p in source.problems)
    # CrowS-Pairs has no better direction, and a prior for one answer is no capability.
    assert records.chance[records.metric == "pct_stereotype"].isna().all()
    assert set(records.majority[records.task == "wsc"].round(3)) == {0.635}
    # Untrained models guess: 16 runs' first checkpoints against the chance levels of the table.
    untrained = trained[(trained.step == 0) & trained.primary & trained.domain.ne("bias")]
    z = (untrained.value - untrained.chance) / untrained.stderr
    own = untrained.task.isin(["arc_easy", "piqa", "winogrande", "logiqa", "sciq"])
    assert abs((untrained.value - untrained.chance)[own].mean()) < 0.02
    assert z[own].abs().median() < 2
    of_run = records[records.run == "pythia-6.9b"]
    state = onsets.trajectories(curves(of_run).main(), of_run)[1].set_index("task").state
    assert state["lambada_openai"] == state["arc_easy"] == state["sciq"] == onsets.LEFT
    assert state["mmlu_abstract_algebra"] == onsets.AT_CHANCE


@pytest.mark.parametrize(
    ("first", "second", "contradictions"), [(0.5, 0.5, " 0 of them"), (0.5, 0.6, " 1 of them")]
)
def test_repeated_records(first, second, contradictions) -> None:
    row = {"run": "r", "family": "f", "params": 1, "step": 1, "tokens": 1, "flops": 6.0,
           "task": "arc_easy", "domain": "knowledge", "shots": 0, "metric": "accuracy"}  # fmt: skip
    results = to_results(Settings({}, ""), [row | {"value": v} for v in (first, second)], [])
    assert results.records.value.tolist() == [second]
    assert "1 record is repeated" in results.problems[-1] and contradictions in results.problems[-1]


def test_csv_with_a_column_map(tmp_path) -> None:
    wide = "Model,Family,Size (B),Data (T),MMLU,ARC-C\nLlama-2-7b,Llama-2,7.0,2.0,43.8,53.1\n"
    wide += "Yi-6b,Yi,6.0,,64.1,oops\n"
    path = write(tmp_path / "wide.csv", wide)
    source = open_source(
        f"csv:{path}?run=Model&family=Family&params=Size (B)*1e9&tokens=Data (T)*1e12"
        "&values=MMLU,ARC-C&scale=0.01&shots='5'"
    )
    row = one(source.records[source.records.run == "Llama-2-7b"], "mmlu 5-shot")
    assert (row.value, row.params, row.tokens) == (pytest.approx(0.438), 7e9, 2e12)
    assert (row.flops, row.chance, row.domain) == (6 * 7e9 * 2e12, 0.25, "examination")
    assert len(source.records) == 4 and source.records.value.isna().sum() == 1
    assert any("'oops'" in problem for problem in source.problems)
    assert any("tokens not known for Yi-6b" in problem for problem in source.problems)
    tall = "task_metric,gptj_6b,open_7b\nanli_r1/acc,0.32,0.34\narc_easy/acc_norm,0.6,0.7\n"
    path = write(tmp_path / "tall.csv", tall)
    spec = f"csv:{path}?task=task_metric&values=gptj_6b,open_7b&over=run&tokens='2e11'"
    records = open_source(spec).records
    mine = records[records.run == "open_7b"]
    assert one(mine, "anli_r1").value == 0.34 and one(mine, "anli_r1").chance == pytest.approx(
        1 / 3
    )
    assert one(mine, "arc_easy", "accuracy_per_char").value == 0.7


def test_csv_of_records_comes_back(tmp_path) -> None:
    records = open_source(simulate(tmp_path / "run")).records
    records = records.assign(unigram=records.value.where(records.metric == "perplexity"))
    records.to_csv(tmp_path / "records.csv", index=False)
    back = open_source(f"csv:{tmp_path / 'records.csv'}").records
    key = ["task", "metric", "step"]
    pd.testing.assert_frame_equal(
        back.sort_values(key, ignore_index=True),
        records.sort_values(key, ignore_index=True).astype({"task_version": "str"}),
        check_dtype=False,
    )
    records.astype({"unigram": object}).assign(unigram="low").to_csv(tmp_path / "no.csv")
    problems = open_source(f"csv:{tmp_path / 'no.csv'}").problems
    assert any("entries of unigram are no numbers (first: 'low')" in one for one in problems)


def test_tensorboard_of_others(tmp_path) -> None:
    from tensorboard.compat.proto import event_pb2
    from tensorboard.plugins.scalar import summary_v2
    from tensorboard.summary.writer.record_writer import RecordWriter

    (tmp_path / "logs").mkdir()
    with open(tmp_path / "logs" / "events.out.tfevents.1.host", "wb") as stream:
        writer = RecordWriter(stream)
        for step in range(1, 6):
            scalars = {"lm_loss": 5.0 / step, "eval/arc_easy/acc": 0.25 + step / 100}
            event = event_pb2.Event(step=step)
            for tag, value in scalars.items():
                event.summary.value.add(tag=tag, simple_value=value)
            # TensorFlow 2's form: a tensor whose first one says that it is a scalar
            event.summary.value.extend(summary_v2.scalar_pb("norm", float(step)).value)
            if step > 1:
                event.summary.value[-1].ClearField("metadata")
            writer.write(event.SerializeToString())
        writer.flush()
        stream.write(b"half a record")
    source = open_source(
        f"tensorboard:{tmp_path / 'logs'}?loss=lm_loss&tasks=eval/&tokens_per_step=100&params=1e3"
    )
    assert source.metrics.loss.tolist() == pytest.approx([5, 2.5, 5 / 3, 1.25, 1])
    assert source.metrics.norm.tolist() == [1, 2, 3, 4, 5]
    assert source.metrics.flops.tolist() == [6e5, 12e5, 18e5, 24e5, 30e5]
    assert any("damaged" in problem for problem in source.problems)
    last = source.records.iloc[-1]
    assert (last.task, last.metric, last.tokens, last.chance) == ("arc_easy", "accuracy", 500, 0.25)
    assert last.value == pytest.approx(0.30)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pythia:{tmp}/nothing", "there is no"),
        ("harness:{tmp}/other.json", "no results"),
        ("pythia:{tmp}/result.json", "no results of Pythia"),
        ("harness:{tmp}/result.json?tokens_per_stp=3", "no setting tokens_per_stp; known: run"),
        ("harness:{tmp}/result.json?step=many", "step=many is not a number"),
        ("csv:{tmp}/table.csv", "no column task"),
        ("csv:{tmp}/table.csv?task=b&value=c", "no column b"),
        ("csv:{tmp}/table.csv?task=a&values=x*two", "two is not a number"),
        ("tensorboard:{tmp}", "no event files with scalars"),
        ("somewhere/else", "no such directory"),
        ("wandb:{tmp}", "no exports of Weights"),
        ("somekind:{tmp}", "no such directory"),
    ],
)
def test_mistakes_are_named(tmp_path, spec, message) -> None:
    write(tmp_path / "other.json", {"a": 1})
    write(tmp_path / "result.json", {"results": {"arc_easy": {"acc": 0.5}}})
    write(tmp_path / "table.csv", "a,x\n1,2\n")
    with pytest.raises(UserError, match=message):
        open_source(spec.format(tmp=tmp_path))


def test_damaged_files_are_said(tmp_path) -> None:
    write(tmp_path / "good_step1.json", OLD)
    write(tmp_path / "bad.json", '{"results": ')
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"{}" * 999)[:20])
    source = open_source(f"harness:{tmp_path}?tokens_per_step=1")
    assert len(source.records) == 5
    assert any("bad.json: not readable as JSON" in problem for problem in source.problems)
    assert any("cut.json.gz: unreadable" in problem for problem in source.problems)


@pytest.mark.parametrize(
    ("name", "size", "family"),
    [("opt-1.3b", 1.3e9, "opt"), ("bloom-7b1", 7.1e9, "bloom"), ("gptj_6b", 6e9, "gptj"),
     ("Llama-2-70b-hf", 70e9, "Llama-2-hf"), ("pythia-70m-deduped", 70e6, "pythia-deduped")],
)  # fmt: skip
def test_names_tell_sizes(name, size, family) -> None:
    assert (size_in_name(name), family_of(name)) == (size, family)


def test_names_without_a_size() -> None:
    assert math.isnan(size_in_name("amber")) and family_of("amber") == "amber"


CASES = {
    "piqa": ("run,step,tokens,piqa\na,1,1,50\na,2,2,52.5\n", [0.5, 0.525]),
    "humaneval": ("run,step,tokens,piqa,humaneval\na,1,1,50,0.6\na,2,2,52.5,0.9\n", [0.006, 0.009]),
    "arc_easy": ("run,step,tokens,drop,arc_easy\na,1,1,10,0.26\na,2,2,20,0.5\n", [0.26, 0.5]),
}


@pytest.mark.parametrize("task", CASES)
def test_per_cent_are_recognized_for_a_whole_column(tmp_path, task) -> None:
    text, values = CASES[task]
    columns = text.splitlines()[0].split(",")[3:]
    file = write(tmp_path / "t.csv", text)
    source = open_source(f"csv:{file}?values={','.join(columns)}")
    found = source.records[source.records.task == task]
    np.testing.assert_allclose(found.value, values)
    assert any("per cent, divided by 100: " in problem for problem in source.problems)
    n = known_tasks.lookup(task).n
    np.testing.assert_allclose(found.stderr**2, found.value * (1 - found.value) / (n - 1))


@pytest.mark.parametrize("values", ["0.52,52.5", "52,5250"])
def test_what_is_neither_share_nor_per_cent_is_refused(tmp_path, values) -> None:
    first, second = values.split(",")
    file = write(tmp_path / "t.csv", f"step,piqa\n1,{first}\n2,{second}\n")
    with pytest.raises(UserError, match=r"piqa: values of accuracy from .* neither shares nor per"):
        open_source(f"csv:{file}?values=piqa")


def test_names_of_our_tasks_and_imported_ones_meet(tmp_path) -> None:
    own = [("arc_easy_2shot", 2), ("gsm8k", 8), ("mmlu_anatomy", 5), ("piqa", 0)]
    table = "run,step,task,shots,acc\n" + "".join(f"a,1,{t},{n},0.5\n" for t, n in (
        ("arc_easy_2shot", ""), ("gsm8k", 8), ("hendrycksTest-anatomy", 5), ("piqa", 0)
    ))  # fmt: skip
    records = open_source(f"csv:{write(tmp_path / 't.csv', table)}?value=acc").records
    assert {shown_name(task, shots) for task, shots in own} == set(records.task)
    assert set(records.task) == {"arc_easy 2-shot", "gsm8k 8-shot", "mmlu_anatomy 5-shot", "piqa"}


def test_interventions_and_baselines_are_runs_of_their_own(tmp_path) -> None:
    folder = "pythia-v1/pythia-1.4b-deduped"
    result = {"results": {"piqa": {"acc": 0.6}}, "config": {"num_fewshot": 0}}
    for place in ("zero-shot/1.4b-deduped", "baseline/baseline-1.4b-deduped",
                  "intervention/intervention-1.4b-deduped",
                  "intervention/intervention-1.4b-deduped-long"):  # fmt: skip
        write(tmp_path / folder / f"{place}_step114000.json", result)
    records = open_source(f"pythia:{tmp_path}").records
    of = "pythia-1.4b-deduped"
    names = {of, f"{of}-baseline", f"{of}-intervention", f"{of}-intervention-long"}
    assert set(records.run) == names and len(set(records.family)) == 4


def test_wandb_exports_of_amber(shared_data) -> None:
    folder = shared_data / "reference" / "amber"
    source = open_source(f"wandb:{folder}?run=Amber&params=6.74e9")
    records = source.records
    assert records.step.nunique() == 356 and len(records) == 4806
    final = records.drop_duplicates("task", keep="last").set_index("task").value
    # The model's card: https://huggingface.co/LLM360/Amber
    card = {"arc_challenge 25-shot": 0.4257, "hellaswag 10-shot": 0.7391, "mmlu 5-shot": 0.2853}
    assert final[list(card)].to_dict() == pytest.approx(card, abs=1e-4)
    assert final["pile_github"] > 1 and records.stderr.notna().sum() == 1602
    state = onsets.trajectories(curves(records).main(), records)[1].set_index("task").state
    assert state["mmlu 5-shot"] == state["hellaswag 10-shot"] == onsets.LEFT


def test_wandb_charts(tmp_path) -> None:
    write(tmp_path / "a.csv", '"Step","x - acc","x - acc__MIN","x - acc__MAX"\n0,24.1,24.1,24.1\n')
    write(tmp_path / "b.csv", '"Step","r - train/loss","r - eval/piqa/acc_norm","q - train/loss"\n'
          "0,9.5,,\n2,3.5,52.1,4.5\n")  # fmt: skip
    write(tmp_path / "c.csv", "name,size\na,1\n")
    source = open_source(f"wandb:{tmp_path}?tasks=x&tokens_per_step=10")
    scores = source.records.set_index("task")[["run", "step", "tokens", "metric", "value"]]
    assert scores.loc["piqa"].tolist() == ["r", 2, 20, "accuracy_per_char", 0.521]
    assert scores.loc["acc"].tolist() == ["x", 0, 0, "accuracy", pytest.approx(0.241)]
    losses = {(row.run, row.step): row.loss for row in source.metrics.itertuples()}
    assert losses == {("r", 0): 9.5, ("r", 2): 3.5, ("q", 2): 4.5}
    assert any("c.csv: no chart" in problem for problem in source.problems)
