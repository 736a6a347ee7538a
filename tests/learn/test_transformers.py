"""Hugging Face's Trainer takes part in runs with real nodes; of a PEFT model only the adapter travels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from swarm.errors import ConfigError
from swarm.learn import save_model
from tests.learn.runs import Operators, history, run_example
from tests.node.hospitals import Hospitals
from tests.others import add_loops

add_loops("transformers")
add_loops("peft")

from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from swarm.learn.transformers import SwarmTrainerCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*")
STEPS = 4
"""Of an epoch, of 8 rows each."""


def notes(seed: int = 1, rows: int = STEPS * 8) -> list[dict[str, Tensor]]:
    words = torch.randint(1, 20, (rows, 6), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": ((row > 10).sum() > 3).long()} for row in words]


def classifier() -> Any:
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=20, num_hidden_layers=1, num_labels=2, **small))


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    settings: dict[str, Any] = {"max_steps": 100, "per_device_train_batch_size": 8, "learning_rate": 1e-2} | given
    return TrainingArguments(
        output_dir=str(folder), report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        use_cpu=True, **settings,
    )  # fmt: skip


def train(
    site: Path, run: str, folder: Path, model: Any, *, callback: dict[str, Any] | None = None, **given: Any
) -> tuple[SwarmTrainerCallback, Trainer]:
    swarm = SwarmTrainerCallback(site, run, **(callback or {}))
    trainer = Trainer(
        model, arguments(folder, **given), train_dataset=notes(), eval_dataset=notes(2), callbacks=[swarm]
    )
    trainer.train()
    return swarm, trainer


def test_a_trainer_takes_part_and_stops_with_the_run(alone: Hospitals, tmp_path: Path) -> None:
    model = classifier()
    Operators(alone).open_run("notes", model, ["north"], rounds=3, sync_interval=3, submissions_min=1, merge="mean")
    losses: list[float] = []
    model.register_forward_hook(lambda m, _, out: losses.append(out["loss"].item()) if m.training else None)
    told = {"loss_there": "eval_loss"}
    found, trainer = train(
        alone.sites["north"], "notes", tmp_path, model, gradient_accumulation_steps=2, callback={"metrics": told}
    )
    assert (found.loop.swarm.round, found.loop.swarm.finished) == (3, True)
    assert trainer.state.global_step == 9
    submissions = [one["submissions"][0] for one in history(alone, "notes")]
    # An epoch has two steps of two batches, 16 rows each.
    assert [one["weight"] for one in submissions] == [48, 48, 48]
    # As the trainer's own: this model takes keywords, so it is held to divide by what a step accumulates; it does not.
    for number, one in enumerate(submissions):
        assert one["metrics"]["loss"] == pytest.approx(sum(losses[6 * number : 6 * number + 6]) / 3, rel=1e-5)
    assert "loss_there" not in submissions[0]["metrics"]
    assert all("loss_there" in one["metrics"] for one in submissions[1:])
    last = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()  # once more, of a run that is over: the model is the last checkpoint again
    assert all(torch.equal(value, last[name]) for name, value in model.state_dict().items())


def test_losses_that_are_shares_of_a_step_are_added_up(alone: Hospitals, tmp_path: Path) -> None:
    """A causal model divides by the tokens of all batches that a step accumulates."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, num_hidden_layers=1, **small))
    Operators(alone).open_run("words", model, ["north"], rounds=1, sync_interval=2, submissions_min=1, merge="mean")
    rows = [{"input_ids": one["input_ids"], "labels": one["input_ids"]} for one in notes()]
    given = arguments(tmp_path, gradient_accumulation_steps=2, learning_rate=0.0)
    Trainer(model, given, train_dataset=rows, callbacks=[SwarmTrainerCallback(alone.sites["north"], "words")]).train()
    words = torch.stack([row["input_ids"] for row in rows])
    with torch.no_grad():
        loss = float(model(input_ids=words, labels=words).loss)
    submission = history(alone, "words")[0]["submissions"][0]
    assert submission["metrics"]["loss"] == pytest.approx(loss, rel=1e-4)
    assert submission["weight"] == 32


def test_of_a_peft_model_only_the_adapter_travels(alone: Hospitals, tmp_path: Path) -> None:
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    model = get_peft_model(classifier(), lora)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, tmp_path / "adapter.safetensors")
    tensors = load_file(tmp_path / "adapter.safetensors")
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert set(tensors) == trained
    assert all("lora" in name or "modules_to_save" in name for name in trained)
    Operators(alone).open_run("adapter", model, ["north"], rounds=2, sync_interval=2, submissions_min=1, merge="mean")
    train(alone.sites["north"], "adapter", tmp_path, model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert changed <= trained
    other = get_peft_model(classifier(), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))
    with pytest.raises(ConfigError, match=r"lora_A.default.weight is F32\[4, 8\] where F32\[2, 8\] belongs"):
        train(alone.sites["north"], "adapter", tmp_path, other)
    for parameter in other.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="none of its parameters is trained"):
        save_model(other, tmp_path / "nothing.safetensors")


def test_a_trainer_that_died_goes_on_bit_for_bit(alone: Hospitals, tmp_path: Path) -> None:
    """Rounds are epochs here, and rows come in their own order: the place in a loader is not kept."""

    def opened(run: str) -> str:
        Operators(alone).open_run(
            run, classifier(), ["north"], rounds=3, sync_interval=STEPS, submissions_min=1, merge="mean"
        )
        return run

    calls = iter(range(2 * STEPS + 2))

    def dies(*_: Any) -> None:
        if next(calls, None) is None:
            raise RuntimeError("power cut")

    site = alone.sites["north"]
    settings: dict[str, Any] = {"train_sampling_strategy": "sequential"}
    whole = train(site, opened("whole notes"), tmp_path, classifier(), **settings)[0].loop.swarm.checkpoint
    run = opened("cut notes")
    mortal = classifier()
    mortal.register_forward_pre_hook(dies)
    with pytest.raises(RuntimeError, match="power cut"):
        train(site, run, tmp_path, mortal, **settings)
    assert train(site, run, tmp_path, classifier(), seed=5, **settings)[0].loop.swarm.checkpoint == whole


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"load_best_model_at_end": True, "eval_strategy": "no"}, "load_best_model_at_end would put another model"),
        ({"deepspeed": {"zero_optimization": {"stage": 1}}}, "deepspeed splits the model"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    alone: Hospitals, tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    callback = SwarmTrainerCallback(alone.sites["north"], "any")
    settings = arguments(tmp_path)
    for name, value in given.items():
        setattr(settings, name, value)
    with pytest.raises(ConfigError, match=words):
        callback.on_train_begin(settings, None, None)


def test_the_example_of_the_readme_runs(alone: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = get_peft_model(classifier(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    Operators(alone).open_run(
        "transformers", start, ["north"], rounds=2, sync_interval=2, submissions_min=1, merge="mean"
    )
    names = run_example("Transformers", site=alone.sites["north"], train_rows=notes(), test_rows=notes(2))
    assert names["swarm"].loop.finished
    assert "loss_there" in history(alone, "transformers")[1]["submissions"][0]["metrics"]
