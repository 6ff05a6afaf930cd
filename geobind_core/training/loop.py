"""The loop of an `align` stage, on Accelerate."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from geobind_core.config.models import AlignConfig
from geobind_core.data.loading import TrainingBatches, batches, plan_workers
from geobind_core.data.paired import PairedData, Rows
from geobind_core.data.samples import BadSample, BadSampleCount, SampleReader
from geobind_core.errors import DataError, TrainingError
from geobind_core.plugins.modality import Augmentation, EncoderOutput
from geobind_core.plugins.stage_kind import StageContext, StageResult
from geobind_core.space.embed import to_device
from geobind_core.training import checkpoint
from geobind_core.training.accelerator import make_accelerator
from geobind_core.training.anchors import FixedAnchor, embed_anchor, frozen
from geobind_core.training.edges import Edge, EdgeLosses
from geobind_core.training.optimizer import build_optimizer, build_scheduler
from geobind_core.training.seeds import derived_seed
from geobind_core.training.stage_log import StageLog
from geobind_core.training.step import StageModel, depends_on_slices, gradients, join, slices_of, spans_of

_LOG_EVERY = 10


def train(config: AlignConfig, context: StageContext) -> StageResult:
    """Trains the encoders of `config.train` in place and returns figures about it.

    Raises:
        DataError: There is nothing to train on, or too much of it cannot be read.
        TrainingError: The loss is not finite, or a frozen encoder changed.
    """
    assert context.data is not None
    accelerator = make_accelerator(context.run, context.folder)
    try:
        with frozen(context, config.anchor or (), accelerator.device):
            return _Stage(config, context, context.data, accelerator).run()
    finally:
        accelerator.end_training()  # trackers write what they hold back, also of a stage that failed
        accelerator.free_memory()


class _Stage:
    """One run of a stage: what is set up once, and the steps."""

    def __init__(self, config: AlignConfig, context: StageContext, data: PairedData, accelerator: Accelerator) -> None:
        self.config = config
        self.context = context
        self.data = data
        self.accelerator = accelerator
        self.log = StageLog(context.folder)
        self.seed = derived_seed(context.run.seed, config.name)
        self.augment = {m: [Augmentation.parse(a) for a in texts] for m, texts in config.augment.items()}
        self.live_anchors = [m for m in config.anchor or () if m in self.augment]

    def run(self) -> StageResult:
        fingerprint = self.context.fingerprint
        state = checkpoint.read_state(self.context.folder, fingerprint) or checkpoint.StageState(fingerprint)
        self.log.trim(state.step)
        self.state = state

        taking_part = [*self.config.train, *(self.config.anchor or ())]
        rows = self.data.rows("train", taking_part)
        if len(rows) < 2:
            raise DataError(
                f"{len(rows)} training rows have all of {', '.join(taking_part)}; expected at least 2.",
                place=f"stage {self.config.name}, data.{self.data.name}",
            )
        self.bad = BadSampleCount(len(rows), self.config.max_bad_samples, f"stage {self.config.name}")
        self.bad.add(state.bad)
        anchors, rows = self._fixed_anchors(rows)

        readers = {name: self._reader(name, train=True) for name in self.config.train}
        readers |= {name: self._reader(name, train=True) for name in self.live_anchors}
        workers, room = plan_workers(readers, rows, self.context.run.loader)
        for reader in readers.values():
            reader.keep_up_to(room)
        sampler = TrainingBatches(rows, self.config.batch_size, self.config.epochs, self.seed, state.step)
        if sampler.batch_size < self.config.batch_size:
            self.context.reporter.warn(
                f"stage {self.config.name}: {len(rows)} rows make one batch of {len(rows)}, "
                f"not of {self.config.batch_size}; the pool of negatives is smaller than asked for"
            )

        micro = self.config.micro_batch_size or sampler.batch_size
        for name in self.config.train if micro < sampler.batch_size else ():
            if depends_on_slices(self.context.encoders[name]):
                self.context.reporter.warn(
                    f"stage {self.config.name}: '{name}' has batch normalisation, which sees {micro} rows at a time "
                    f"and not {sampler.batch_size}; micro_batch_size changes its result a little"
                )

        set_seed(self.seed)
        model = StageModel({name: self.context.encoders[name] for name in self.config.train})
        for name in self.config.train:
            self.context.encoders[name].unfreeze()
        losses = EdgeLosses(self._edges(), self.data).to(self.accelerator.device)
        optimizer = build_optimizer([model, losses], self.config.optimizer)
        total = sampler.steps_per_epoch * self.config.epochs
        scheduler = build_scheduler(
            optimizer,
            self.config.scheduler,
            lr=self.config.optimizer.lr,
            steps_per_epoch=sampler.steps_per_epoch,
            total_steps=total,
        )
        wrapped, optimizer, scheduler = self.accelerator.prepare(model, optimizer, scheduler)
        # Not prepared: autocast must not touch the logits, which need float32.
        self.accelerator.register_for_checkpointing(losses)
        if state.step:
            checkpoint.restore(self.accelerator, self.context.folder)
            self.context.reporter.say(f"  going on from step {state.step} of {total}")

        loader = batches(readers, sampler, workers=workers, pin_memory=self.accelerator.device.type == "cuda")
        summary = self._steps(loader, wrapped, losses, optimizer, scheduler, anchors, total, sampler.steps_per_epoch)
        self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        for name in self.config.train:
            self.context.encoders[name].cpu().freeze()
        return StageResult({**summary, "rows": len(rows), "bad_samples": [str(b) for b in self.bad.found.values()]})

    # ------------------------------------------------------------------ setting up

    def _edges(self) -> list[Edge]:
        return [
            Edge(*pair.modalities, loss=self.context.make_loss(pair.loss), weight=pair.weight)
            for pair in self.config.pairs or ()
        ]

    def _reader(self, name: str, *, train: bool) -> SampleReader:
        modality = self.context.modalities[name].with_augment(self.augment.get(name, ()))
        return SampleReader(self.data, name, modality, train=train, seed=self.seed)

    def _fixed_anchors(self, rows: Rows) -> tuple[dict[str, FixedAnchor], Rows]:
        anchors = {}
        for name in (m for m in self.config.anchor or () if m not in self.augment):
            anchors[name], rows, bad = embed_anchor(
                self.context,
                self._reader(name, train=False),
                rows,
                batch_size=self.config.micro_batch_size or self.config.batch_size,
                device=self.accelerator.device,
            )
            self._note_bad(bad)
        if len(rows) < 2:
            raise DataError(
                f"{len(rows)} training rows can be read; expected at least 2.",
                place=f"stage {self.config.name}, data.{self.data.name}",
            )
        return anchors, rows

    # ------------------------------------------------------------------ the steps

    def _steps(
        self,
        loader: Any,
        model: Any,
        losses: EdgeLosses,
        optimizer: Any,
        scheduler: Any,
        anchors: Mapping[str, FixedAnchor],
        total: int,
        steps_per_epoch: int,
    ) -> dict[str, Any]:
        device = self.accelerator.device
        started = window = time.monotonic()
        last_saved, before, first = started, self.state.seconds, self.state.step
        samples = samples_in_window = 0
        loss: torch.Tensor | None = None
        logs: dict[str, torch.Tensor] = {}
        last: dict[str, float] = {}
        with self.context.reporter.task(f"  {self.config.name}", total, "steps", self.state.step) as task:
            for batch in loader:
                self._note_bad(batch["bad"])
                rows = batch["rows"]
                if len(rows) >= 2:  # a batch of one has nothing to tell apart
                    inputs = to_device(batch["inputs"], device)
                    outputs = {name: anchor.of(rows, device) for name, anchor in anchors.items()}
                    outputs |= self._embed_live(inputs, len(rows))
                    loss, logs = gradients(
                        self.accelerator,
                        model,
                        losses,
                        {m: inputs[m] for m in self.config.train},
                        outputs,
                        rows,
                        self.config.micro_batch_size,
                    )
                    if self.config.optimizer.clip_norm is not None:
                        everything = [*model.parameters(), *losses.parameters()]
                        self.accelerator.clip_grad_norm_(everything, self.config.optimizer.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                    losses.clamp_()
                    samples += len(rows)
                    samples_in_window += len(rows)
                scheduler.step()
                self.state.step = batch["step"] + 1
                if loss is not None and (self.state.step % _LOG_EVERY == 0 or self.state.step == total):
                    now = time.monotonic()
                    last = self._measured(
                        loss,
                        logs,
                        batch["epoch"],
                        scheduler.get_last_lr()[0],
                        samples_in_window / max(now - window, 1e-9),
                    )
                    window, samples_in_window = now, 0
                    task.update(self.state.step, figures=_figures(last, batch["epoch"], self.config.epochs))
                self.state.seconds = before + time.monotonic() - started
                if self.state.step < total and self._checkpoint_is_due(last_saved):
                    self._require_finite(loss, model, losses)
                    checkpoint.save(self.accelerator, self.context.folder, self.state)
                    last_saved = time.monotonic()
        if samples == 0 and first == 0:
            raise DataError("no batch has two readable rows; nothing was trained.", place=f"stage {self.config.name}")
        self._require_finite(loss, model, losses)
        return {
            "steps": total,
            "epochs": self.config.epochs,
            "steps_per_epoch": steps_per_epoch,
            "seconds": round(self.state.seconds, 3),
            "samples_per_second": round(samples / max(time.monotonic() - started, 1e-9), 1),
            **{k: last[k] for k in ("loss", "logit_scale") if k in last},
        }

    def _embed_live(self, inputs: Mapping[str, Any], count: int) -> dict[str, EncoderOutput]:
        spans = spans_of(count, self.config.micro_batch_size)
        with torch.no_grad(), self.accelerator.autocast():
            return {
                name: join([self.context.encoders[name](piece) for piece in slices_of(inputs[name], spans)])
                for name in self.live_anchors
            }

    def _checkpoint_is_due(self, last_saved: float) -> bool:
        due = self.config.checkpoint
        by_steps = due.steps is not None and self.state.step % due.steps == 0
        return by_steps or time.monotonic() - last_saved >= due.minutes * 60

    def _note_bad(self, samples: list[BadSample]) -> None:
        for sample in self.bad.add(samples):
            self.state.bad.append(sample)
            self.log.append_bad(sample, self.state.step + 1)
        self.bad.require_few()  # when all of them are in the log

    def _measured(
        self, loss: torch.Tensor, logs: Mapping[str, torch.Tensor], epoch: int, lr: float, rate: float
    ) -> dict[str, float]:
        self._require_finite(loss)
        values = {"loss": float(loss), **{k: float(v) for k, v in logs.items()}, "lr": lr, "samples_per_second": rate}
        self.log.append({"step": self.state.step, "epoch": epoch, **values})
        self.accelerator.log(values, step=self.state.step)
        return values

    def _require_finite(self, loss: torch.Tensor | None, *modules: nn.Module) -> None:
        """Raises if the loss is not finite, or what it did to the weights: a loss can be, and its gradient not."""
        found = "" if loss is None or torch.isfinite(loss) else f"the loss is {float(loss)} at"
        broken = [n for m in modules for n, p in m.named_parameters() if not torch.isfinite(p).all()]
        if broken:
            found = found or f"{len(broken)} weights, such as {broken[0]}, are not finite after"
        if found:
            raise TrainingError(
                f"{found} step {self.state.step}.",
                place=f"stage {self.config.name}",
                hint="The last checkpoint is intact. Try a lower optimizer.lr, optimizer.clip_norm: 1.0, "
                "or mixed_precision: bf16 instead of fp16.",
            )


def _figures(values: Mapping[str, float], epoch: int, epochs: int) -> str:
    scale = f"  logit scale {values['logit_scale']:.1f}" if "logit_scale" in values else ""
    return f"epoch {epoch + 1}/{epochs}  loss {values['loss']:.3f}{scale}  {values['samples_per_second']:.0f} samples/s"
