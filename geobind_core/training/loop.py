"""The loop of an `align` stage, on Accelerate."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator

from geobind_core.config.models import AlignConfig
from geobind_core.data.paired import PairedData
from geobind_core.data.samples import BadSample, BadSampleCount
from geobind_core.errors import DataError, GeoBindError
from geobind_core.plugins.modality import EncoderOutput
from geobind_core.plugins.stage_kind import StageContext, StageResult
from geobind_core.space.embed import to_device
from geobind_core.training import checkpoint, failures
from geobind_core.training.accelerator import make_accelerator, processes_of
from geobind_core.training.edges import BatchRows
from geobind_core.training.frozen import embed_live, frozen
from geobind_core.training.interrupts import StopRequest, stop_requests
from geobind_core.training.processes import Agreement
from geobind_core.training.setup import Prepared, finish, prepare
from geobind_core.training.stage_log import StageLog
from geobind_core.training.step import Step, gradients, slice_count, slices_of

_LOG_EVERY = 10


def train(config: AlignConfig, context: StageContext) -> StageResult:
    """Trains the encoders of `config.train` in place and returns figures about it.

    Raises:
        DataError: There is nothing to train on, or too much of it cannot be read.
        TrainingError: The loss is not finite, memory or a loader process failed, or a frozen encoder changed.
        KeyboardInterrupt: Somebody asked to stop; a checkpoint has been written.
    """
    assert context.data is not None
    accelerator = make_accelerator(context.run, context.folder)
    try:
        with frozen(context, config, accelerator.device):
            return _Stage(config, context, context.data, accelerator).run()
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()  # writes what it holds back, also of a stage that failed
        accelerator.free_memory()


class _Stage:
    """One run of a stage: the steps, and what is written down about them."""

    def __init__(self, config: AlignConfig, context: StageContext, data: PairedData, accelerator: Accelerator) -> None:
        self.config = config
        self.context = context
        self.data = data
        self.accelerator = accelerator
        self.place = f"stage {config.name}"
        self.processes = processes_of(accelerator)
        self.log = StageLog(context.folder)

    def run(self) -> StageResult:
        fingerprint = self.context.fingerprint
        state = checkpoint.read_state(self.context.folder, fingerprint) or checkpoint.StageState(fingerprint)
        self.state = state
        self.processes.wait()  # all have read what the main process now changes
        if self.processes.is_main:
            self.log.trim(state.step)
        rows = self.data.rows("train", [*self.config.train, *(self.config.anchor or ())])
        setting = f"stages.{self.config.name}.max_bad_samples"
        self.bad = BadSampleCount(len(rows), self.config.max_bad_samples, self.place, setting)
        self.bad.add(state.bad)
        try:
            prepared = prepare(
                self.config, self.context, self.data, self.accelerator, self.processes, rows, state.step, self._note_bad
            )
            if state.step:
                checkpoint.restore(self.accelerator, self.context.folder)
                self.context.reporter.say(f"  going on from step {state.step} of {prepared.total_steps}")
            with stop_requests() as stop:
                summary = self._steps(prepared, stop)
        except GeoBindError as error:
            error.place = error.place or self.place
            raise
        except Exception as error:  # torch has no class of its own for a worker that died
            translated = failures.translated(error, self.place, state.saved_step)
            if translated is None:
                raise
            raise translated from error
        finish(self.config, self.context, self.accelerator, prepared)
        bad = [str(b) for b in self.bad.found.values()]
        return StageResult({**summary, "rows": len(prepared.rows), "bad_samples": bad})

    def _steps(self, prepared: Prepared, stop: StopRequest) -> dict[str, Any]:
        started = window = time.monotonic()
        self._saved_at, before, first = started, self.state.seconds, self.state.step
        samples = samples_in_window = 0
        total, room = prepared.total_steps, -(-prepared.batch_size // self.processes.count)
        share: torch.Tensor | None = None
        logs: Mapping[str, torch.Tensor] = {}
        last: dict[str, float] = {}
        batches = iter(prepared.loader)
        with self.context.reporter.task(f"  {self.config.name}", total, "steps", first) as task:
            while self.state.step < total:
                batch = self._next(batches, stop)
                rows, found = (batch["rows"], batch["bad"]) if batch else (torch.empty(0, dtype=torch.long), [])
                due = self.processes.is_main and self._checkpoint_is_due(first)
                agreed = self.processes.agree(rows, room, bool(stop), due, bool(found))
                stopping, due, any_bad = agreed.flags
                if stopping or due:
                    self._save(prepared, share)
                if stopping:
                    self._stop(stop)
                assert batch is not None  # the loader ends with the last step
                if any_bad:
                    self._note_bad([s for part in self.processes.all_objects(found) for s in part])
                needed = slice_count(max(agreed.sizes), self.config.micro_batch_size)
                # One row has nothing to be told apart from; and a process without rows has nothing to embed.
                if len(agreed.rows) >= 2 and min(agreed.sizes) >= needed:
                    share, logs = self._gradients(prepared, batch, agreed)
                    prepared.updates.step()
                    samples += len(agreed.rows)
                    samples_in_window += len(agreed.rows)
                rate = prepared.updates.lr  # what this step used, before the schedule goes on to the next
                prepared.updates.pass_time()
                self.state.step = batch["step"] + 1
                if share is not None and (self.state.step % _LOG_EVERY == 0 or self.state.step == total):
                    loss = self.processes.total(share)
                    self._require_finite(None, loss)
                    now = time.monotonic()
                    last = {
                        "loss": float(loss),
                        **{k: float(v) for k, v in logs.items()},
                        "lr": rate,
                        "samples_per_second": samples_in_window / max(now - window, 1e-9),
                    }
                    self._write_down(last, batch["epoch"])
                    window, samples_in_window = now, 0
                    task.update(self.state.step, figures=_figures(last, batch["epoch"], self.config.epochs))
                self.state.seconds = before + time.monotonic() - started
        if samples == 0 and first == 0:
            raise DataError("no batch has two readable rows; nothing was trained.", place=self.place)
        self._require_finite(prepared, share)
        return {
            "steps": total,
            "epochs": self.config.epochs,
            "steps_per_epoch": prepared.steps_per_epoch,
            "seconds": round(self.state.seconds, 3),
            "samples_per_second": round(samples / max(time.monotonic() - started, 1e-9), 1),
            **{k: last[k] for k in ("loss", "logit_scale") if k in last},
        }

    # ------------------------------------------------------------------ one step

    def _next(self, batches: Iterator[dict[str, Any]], stop: StopRequest) -> dict[str, Any] | None:
        """Returns the next batch; None at the end, or when the loader was stopped together with the stage."""
        try:
            return next(batches, None)
        except RuntimeError as error:
            if stop and failures.is_worker_error(error):
                return None
            raise

    def _gradients(
        self, prepared: Prepared, batch: Mapping[str, Any], agreed: Agreement
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        inputs = to_device(batch["inputs"], self.accelerator.device)
        size, micro = len(batch["rows"]), self.config.micro_batch_size
        outputs = {name: EncoderOutput(inputs[name]) for name in prepared.columns if name in (self.config.anchor or ())}
        try:
            for part in prepared.live:
                count = slice_count(size + len(batch["random"].get(part.name, ())), micro)
                output = embed_live(part, self.context.encoders[part.name], inputs[part.name], count, self.accelerator)
                if part.is_trunk:
                    inputs[part.name] = output.embedding
                else:
                    outputs[part.name] = output
            rows = BatchRows(agreed.rows, agreed.sizes, batch["random"], prepared.random_room)
            step = Step({m: inputs[m] for m in self.config.train}, outputs, rows)
            model = prepared.updates.model
            share, logs = gradients(self.accelerator, model, prepared.losses, step, micro)
        except Exception as error:
            if not failures.is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they keep the tensors that there is no room for
            raise failures.out_of_memory_error(
                error,
                min(micro or size, size),
                lambda rows: self._fits(prepared, inputs, slice_count(size, rows)),
                self.place,
                self.state.saved_step,
            ) from None
        return share, logs

    def _fits(self, prepared: Prepared, inputs: Mapping[str, Any], slices: int) -> bool:
        """Whether a batch in so many slices goes through the networks and back."""
        torch.cuda.empty_cache()  # does nothing without CUDA
        piece = {m: slices_of(inputs[m], slices)[0] for m in self.config.train}
        try:
            outputs = self.accelerator.unwrap_model(prepared.updates.model)(piece)
            torch.autograd.backward([output.embedding.sum() for output in outputs.values()])
        except (torch.OutOfMemoryError, RuntimeError):
            return False
        finally:
            prepared.updates.model.zero_grad()
        return True

    # ------------------------------------------------------------------ what is written down

    def _checkpoint_is_due(self, first: int) -> bool:
        due = self.config.checkpoint
        by_steps = due.steps is not None and self.state.step % due.steps == 0
        by_time = time.monotonic() - self._saved_at >= due.minutes * 60
        return self.state.step > first and (by_steps or by_time)

    def _save(self, prepared: Prepared, share: torch.Tensor | None) -> None:
        self._require_finite(prepared, share)
        if self.state.step > 0:
            checkpoint.save(self.accelerator, self.processes, self.context.folder, self.state)
        self._saved_at = time.monotonic()

    def _stop(self, stop: StopRequest) -> None:
        name = stop.signal.name if stop.signal else "a signal to another process"
        stop.signal = None  # seen to
        stage = f"stage '{self.config.name}'"
        done = (
            f"the checkpoint of step {self.state.step} of {stage} is written"
            if self.state.step
            else f"{stage} is at its start"
        )
        raise KeyboardInterrupt(f"stopped by {name}; {done}")

    def _note_bad(self, samples: list[BadSample]) -> None:
        for sample in self.bad.add(samples):
            self.state.bad.append(sample)
            if self.processes.is_main:
                self.log.append_bad(sample, self.state.step + 1)
        self.bad.require_few()  # when all of them are in the log

    def _write_down(self, values: Mapping[str, float], epoch: int) -> None:
        if self.processes.is_main:
            self.log.append({"step": self.state.step, "epoch": epoch, **values})
        self.accelerator.log(dict(values), step=self.state.step)

    def _require_finite(self, prepared: Prepared | None, loss: torch.Tensor | None) -> None:
        modules = [] if prepared is None else [prepared.updates.model, prepared.losses]
        found = failures.not_finite(loss, modules)
        # The parts of a divided network that other processes have may be broken when these are not.
        found = next((f for f in self.processes.all_objects(found) if f), "")
        if found:
            raise failures.not_finite_error(found, self.state.step, self.place, self.state.saved_step)


def _figures(values: Mapping[str, float], epoch: int, epochs: int) -> str:
    scale = f"  logit scale {values['logit_scale']:.1f}" if "logit_scale" in values else ""
    return f"epoch {epoch + 1}/{epochs}  loss {values['loss']:.3f}{scale}  {values['samples_per_second']:.0f} samples/s"
