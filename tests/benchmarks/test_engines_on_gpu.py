"""The benchmark of engines on a GPU, without one: it runs whole, misses nothing silently, and survives what dies."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import engines_on_gpu
from benchmarks.engines_on_gpu import (
    COMPILED,
    EAGER16,
    EAGER32,
    ENGINE,
    LONGEST,
    ON_DEVICE,
    ORT,
    PLUGIN,
    TIME_IS_UP,
    WITH_COPIES,
    Clock,
    Job,
    Results,
    Told,
    alone,
    builder_for,
    cases_to_time,
    compile_heads,
    find_out,
    main,
    make_inputs,
    make_interface,
    measure_head,
    profiles,
    run_apart,
    torch_maker,
)
from exporter.engines import BuildOptions
from exporter.parity import make_cases
from exporter.tasks import TASKS, TaskName
from tests.exporter.engines.test_tensorrt_runner import MAKERS, Bench, inputs_of

FAMILIES = ("roformer", "roberta-prelayernorm")
ENGINES = [f"{ENGINE}{precision}" for precision in ("fp16", "fp32", "int8")]
SMALL = ["--layers", "1", "--hidden", "16", "--vocabulary", "40", "--workers", "1"]


def job_of(folder: Path, task: TaskName = "fill-mask", family: str = "roformer", ways: Sequence[str] = ()) -> Job:
    return Job("measure", family, task, 1, 16, 40, "onnxruntime", None, str(folder), list(ways))


def parity(way: str) -> dict[str, Any]:
    return {"part": "parity", "way": way, "passed": True, "outputs": []}


class Process:
    """In place of processes that are started: their work is done here, and the time runs out when it is told to."""

    def __init__(self, until: Callable[[Job], bool] = lambda _job: False) -> None:
        self.jobs: list[Job] = []
        self.left = 100.0
        self.until = until

    def run(self, command: Sequence[str], log: Path, seconds: float) -> str | None:
        job = Job(**json.loads(Path(command[-2]).read_text(encoding="utf-8")))
        self.jobs.append(job)
        engines_on_gpu.do(job, Path(command[-1]))
        if self.until(job):
            self.left = 0
        return None


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two heads without a GPU; the time is up after the first. Whether engines run is not tried first."""
    out = tmp_path_factory.mktemp("out") / "found.json"
    process = Process(until=lambda job: job.what == "measure")
    tasks = ["text-generation", "fill-mask"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines_on_gpu, "find_out", lambda *_: True)
        patch.setattr(engines_on_gpu, "run_process", process.run)
        patch.setattr(Clock, "left", lambda _clock: process.left)
        patch.setattr(os, "cpu_count", lambda: 1)
        patch.setattr(engines_on_gpu, "ROUNDS", 1)
        patch.setattr(engines_on_gpu, "WARM_UP", 0)
        arguments = ["--cpu", "--families", "roformer", "--tasks", *tasks, "--out", str(out), *SMALL]
        assert main(arguments) == 0
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def rows_of(result: dict[str, Any], part: str) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["part"] == part]


def test_every_engine_is_judged(result: dict[str, Any]) -> None:
    rows = rows_of(result, "parity")
    assert [(row["task"], row["way"]) for row in rows] == [("text-generation", way) for way in ENGINES]
    assert all(row["passed"] for row in rows)
    assert {of["output"] for row in rows for of in row["outputs"]} == {"logits", "present"}
    assert all(of["metrics"]["finite"] for row in rows for of in row["outputs"])


def test_every_way_is_timed_in_every_case(result: dict[str, Any]) -> None:
    rows = rows_of(result, "latency")
    cases = ["1 x 128, prompt", "1 x 1 after 127", "8 x 128, prompt", "8 x 1 after 127"]
    ways = [*ENGINES, EAGER16, EAGER32, ORT]
    assert [(row["case"], row["way"]) for row in rows] == [(case, way) for case in cases for way in ways]
    for row in rows:
        assert row[WITH_COPIES]["milliseconds"] > 0
        assert (ON_DEVICE in row) == row["way"].startswith("torch")
        base = next(of for of in rows if (of["case"], of["way"]) == (row["case"], EAGER16))
        ratio = row[WITH_COPIES]["milliseconds"] / base[WITH_COPIES]["milliseconds"]
        assert row[WITH_COPIES]["ratio_to_eager_fp16"] == pytest.approx(ratio, rel=0.01, abs=1e-3)


def test_what_did_not_fit_is_told(result: dict[str, Any]) -> None:
    missing = {(row["part"], row["task"], row.get("case"), row["way"]): row["why"] for row in result["not_run"]}
    late = {key: why for key, why in missing.items() if key[1] == "fill-mask" and key[3] != COMPILED}
    assert set(late.values()) == {TIME_IS_UP}
    assert len(late) == len(ENGINES) + 2 * (len(ENGINES) + 3)
    others = {key[3] for key in missing if key not in late}
    assert others == {COMPILED}


def test_rows_made_without_a_gpu_say_so(result: dict[str, Any]) -> None:
    assert all(row["made_by"] == "--cpu" for row in result["rows"])
    assert (result["device"], result["sm"]) == ("none, made by --cpu", None)


def test_it_is_found_out_whether_an_engine_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(tmp_path, ways=["engine fp16"])
    built = {"part": "build", "way": "engine fp16", "built_for": "ComputeCapability.CURRENT"}
    good = {"prepare": Told([], {}, ("engine fp16", "write the graph"), None)}
    good |= {"build": Told([built], {}, ("engine fp16", "build"), None)}
    good |= {"measure": Told([parity("engine fp16")], {}, ("engine fp16", "run"), None)}
    refused = Told([], {"engine fp16": "build: CompileError: no SM 90"}, ("engine fp16", "build"), None)
    crashed = Told([], {}, ("engine fp16", "load"), "killed by SIGSEGV")
    worlds: list[tuple[dict[str, Told], str | None]] = [
        (good, None),
        (good | {"build": refused}, "build: CompileError: no SM 90"),
        (good | {"measure": crashed}, "load: killed by SIGSEGV"),
    ]
    for world, failed in worlds:
        monkeypatch.setattr(
            engines_on_gpu, "run_apart", lambda job, _clock, world=world: copy.deepcopy(world[job.what])
        )
        results = Results(by_cpu=False)
        assert find_out(job, Clock(100), results) == (failed is None)
        (row,) = results.runs
        assert (row["runs"], row.get("failed"), "parity" in row) == (failed is None, failed, failed is None)
        assert ("build" in row) == (failed is None or failed.startswith("load"))


def test_nothing_is_started_when_the_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded: list[str] = []
    monkeypatch.setattr("benchmarks.results.record", lambda name, _content: recorded.append(name))
    assert main(["--cpu", "--seconds", "0", "--tasks", "fill-mask", *SMALL]) == 0
    assert recorded == []
    assert f"onnxruntime runs here: no: {TIME_IS_UP}" in capsys.readouterr().out


def test_without_a_gpu_there_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "There is no GPU that torch can use: --cpu runs all of this without one.\n"


def test_what_is_missing_is_told_by_the_names_of_pip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines_on_gpu, "find_spec", lambda name: None if name.startswith("onnx_") else object())
    assert main(["--cpu"]) == 2
    assert capsys.readouterr().err == "Missing, and needed: pip install onnx-graphsurgeon\n"


@pytest.mark.parametrize(
    "arguments", [["--cpu", "--target", "tensorrt"], ["--hidden", "18"], ["--out", "found.txt"], ["--layers", "0"]]
)
def test_wrong_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


CHILDREN = {
    "os.kill(os.getpid(), 11)": "killed by SIGSEGV",
    "sys.exit('it is broken')": "exit code 1: it is broken",
    "time.sleep(60)": "not done in 2 s",
}


@pytest.mark.parametrize("ends", CHILDREN)
def test_a_process_that_dies_is_survived(ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
import json, os, pathlib, sys, time
events = [{{"row": {{"part": "parity", "way": "engine fp32"}}}}, {{"failed": ["engine fp16", "load: no"]}},
          {{"step": ["engine int8", "run"]}}]
lines = "".join(json.dumps(event) + chr(10) for event in events)
pathlib.Path(sys.argv[2]).write_text(lines + '{{"step": [', encoding="utf-8")
{ends}
"""
    monkeypatch.setattr(engines_on_gpu, "CHILD", (sys.executable, "-S", "-c", code))
    told = run_apart(job_of(tmp_path, ways=ENGINES), Clock(2))
    rows = [{"part": "parity", "way": "engine fp32"}]
    assert told == Told(rows, {"engine fp16": "load: no"}, ("engine int8", "run"), CHILDREN[ends])


def test_the_others_are_measured_without_the_way_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str]] = []

    def run(job: Job, clock: Clock) -> Told:
        tried.append(job.ways)
        if "engine fp32" in job.ways:
            return Told([parity("engine fp16")], {}, ("engine fp32", "run"), "killed by SIGSEGV")
        return Told([parity(way) for way in job.engines], {ORT: "load: no"}, ("", "time 1 x 128"), None)

    monkeypatch.setattr(engines_on_gpu, "run_apart", run)
    results, job = Results(by_cpu=False), job_of(tmp_path, ways=[*ENGINES, ORT])
    results.expect(job)
    measure_head(job, Clock(100), results)
    assert tried == [[*ENGINES, ORT], ["engine fp16", "engine int8", ORT]]
    assert [row["way"] for row in results.rows] == ["engine fp16", "engine int8"]
    why = {(row["part"], row["way"]): row["why"] for row in results.not_run}
    assert why["parity", "engine fp32"] == "run: killed by SIGSEGV"
    assert why["latency", ORT] == "load: no"


def test_a_head_is_given_up_where_no_way_is_at_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [Told([], {}, ("", "time 8 x 128"), "killed by SIGABRT")]
    monkeypatch.setattr(engines_on_gpu, "run_apart", lambda _job, _clock: told.pop())  # once
    results, job = Results(by_cpu=False), job_of(tmp_path, ways=ENGINES)
    results.expect(job)
    measure_head(job, Clock(100), results)
    assert {row["why"] for row in results.not_run} == {"time 8 x 128: killed by SIGABRT"}
    assert len(results.not_run) == 3 * len(ENGINES)


def test_what_cannot_be_built_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(job: Job, clock: Clock) -> Told:
        if job.what == "prepare":
            return Told([], {"engine int8": "write the graph: no ranges"}, ("", ""), None)
        if job.ways == ["engine fp32"]:
            return Told([], {}, ("engine fp32", "build"), "killed by SIGSEGV")
        return Told([], {COMPILED: "compile: no compiler"} if job.what == "warm" else {}, ("", ""), None)

    monkeypatch.setattr(engines_on_gpu, "run_apart", run)
    results = Results(by_cpu=False)
    jobs = [job_of(tmp_path / family, family=family, ways=[*ENGINES, COMPILED, ORT]) for family in FAMILIES]
    for job in jobs:
        results.expect(job)
    assert [job.ways for job in compile_heads(jobs, Clock(100), results, 2)] == [["engine fp16", ORT]] * 2
    assert {(row["way"], row["why"]) for row in results.not_run if row["family"] == FAMILIES[1]} == {
        ("engine fp16", TIME_IS_UP),
        (ORT, TIME_IS_UP),
        ("engine fp32", "build: killed by SIGSEGV"),
        ("engine int8", "write the graph: no ranges"),
        (COMPILED, "compile: no compiler"),
    }


@pytest.mark.parametrize(("runs", "is_expected"), [("tensorrt", True), ("tensorrt-rtx", False), ("", False)])
def test_plugins_are_measured_where_tensorrt_runs(
    runs: str, is_expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_out(job: Job, clock: Clock, results: Results) -> bool:
        results.runs.append({"failed": "build: no"})
        return job.target == runs

    monkeypatch.setattr(engines_on_gpu, "find_out", find_out)
    results = Results(by_cpu=False)
    jobs = engines_on_gpu.plan(engines_on_gpu.parse([]), 90, tmp_path, results, Clock(100))
    assert {(job.family, job.task) for job in jobs} == (
        {(of, task) for of in FAMILIES for task in TASKS} if runs else set()
    )
    assert ({f"{ENGINE}fp16{PLUGIN}"} <= {row["way"] for row in results.not_run}) == is_expected
    assert {row["why"] for row in results.not_run} == {TIME_IS_UP if runs else "no engine runs here: build: no"}


def test_an_engine_is_built_for_the_gpu_here() -> None:
    pytest.importorskip("tensorrt_rtx")
    engine, sms, _ = builder_for("tensorrt-rtx", 89)
    assert (sms, type(engine).__name__) == ((89,), "TensorRTRTX")
    engine, sms, told = builder_for("tensorrt-rtx", 90)
    assert (sms, told) == ((), "ComputeCapability.CURRENT")
    asked: list[tuple[Any, int]] = []
    config = SimpleNamespace(set_compute_capability=lambda of, index: asked.append((of, index)))
    engine.configure(engine.trt, config, BuildOptions())  # type: ignore[attr-defined]
    assert (asked, config.num_compute_capabilities) == ([(engine.trt.ComputeCapability.CURRENT, 0)], 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_profiles_take_all_cases(family: str, task: TaskName, tmp_path: Path) -> None:
    interface = make_interface(job_of(tmp_path, task, family))
    config: Any = interface.model.config
    cases = make_cases(interface.inputs, pad_token_id=config.pad_token_id, max_tokens=LONGEST, output_width=40, seed=0)
    batches = [(case.inputs, 0 if case.follows is None else 1) for case in cases]
    batches += [(make_inputs(interface, *case), 0) for case in cases_to_time(task).values()]
    for inputs, least in batches:
        sizes = {
            axis: size
            for spec in interface.inputs
            for axis, size in zip(spec.axes, inputs[spec.name].shape, strict=True)
            if isinstance(axis, str)
        }
        sizes["past"] = max(least, sizes.get("past", 0))  # parity's caches are filled in later
        assert any(
            all(of.min <= sizes[axis] <= of.max for axis, of in profile.items()) for profile in profiles(task)
        ), sizes


@pytest.mark.parametrize("way", [EAGER32, EAGER16, COMPILED])
def test_torch_computes_the_same_in_every_way(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines_on_gpu, "BACKEND", "eager")
    job = job_of(tmp_path, "text-generation")
    interface = make_interface(job)
    inputs = make_inputs(interface, (2, 3), past=4)
    with torch.no_grad():
        truth = interface(*(torch.from_numpy(inputs[spec.name]) for spec in interface.inputs))
    times = torch_maker(job, interface, way)(inputs)
    times[ON_DEVICE]()
    found: Any = times[WITH_COPIES]()
    assert len(found) == len(truth)
    for array, tensor in zip(found, truth, strict=True):
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, tensor.numpy(), atol=1e-5 if way == EAGER32 else 2e-2)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("is_native", [False, True], ids=["tensorrt", "tensorrt-rtx"])
def test_an_engine_is_timed_without_copies(make: Any, is_native: bool) -> None:
    bench = Bench(make=make, is_native=is_native)
    for _ in range(2):
        bench.check(4, 8, 4)
    run = alone(bench.runner, inputs_of(2, 3, 4))
    bench.gpu.done.clear()
    for _ in range(2):
        run()
    assert bench.gpu.done == (["execute"] * 2 if is_native else ["launch", "execute"] * 2)
    bench.check(2, 3, 4)


def test_the_same_model_is_made_in_every_process(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    first, second = (make_interface(job).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not any(bool((tensor == 0).all() or (tensor == 1).all()) for tensor in first.values())
    other = make_interface(replace(job, hidden=32)).state_dict()
    assert {tensor.shape for tensor in other.values()} != {tensor.shape for tensor in first.values()}
