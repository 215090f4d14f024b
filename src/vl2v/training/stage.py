"""One stage of training under way: its steps, evaluations and checkpoints."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vl2v.errors import RunError, VL2VWarning
from vl2v.methods import Targets, Terms, moved
from vl2v.methods.averaging import Scores, Weights
from vl2v.session import derive
from vl2v.students.student import Student
from vl2v.system import raise_dropped_signal
from vl2v.training.device import like, make_whole, set_up, whole
from vl2v.training.learner import (
    Checkpoint,
    Learner,
    StageWork,
    copied,
    images_at_once,
    is_out_of_memory,
    learning_rate,
    load,
    load_optimizer,
    new_optimizer,
    optimizer_tensors,
    pieces,
    running_statistics,
    save_checkpoint,
    set_trainable,
    smaller,
    trainable,
    under,
)

if TYPE_CHECKING:
    from vl2v.training.loop import Trainer

PATIENCE = 5  # validations in a row that are no better end a stage, where that is wanted


class StageRun:
    """One stage under way."""

    def __init__(
        self,
        trainer: Trainer,
        work: StageWork,
        student: Student,
        number: int,
        auxiliary: nn.Module | None,
        *,
        last: bool,
    ) -> None:
        self.trainer = trainer
        self.work = work
        self.number = number
        set_trainable(student, work.stage.trains)
        self.given = student
        self.model, learner = set_up(trainer.fabric, Learner(student, auxiliary).to(trainer.fabric.device))
        self.student = learner.student
        self.weights = trainable(learner.student)
        self.extra = trainable(learner.auxiliary) if learner.auxiliary is not None else {}
        groups = [{"params": [*self.weights.values()], "rate": 1.0}]
        if self.extra:
            groups.append({"params": [*self.extra.values()], "rate": work.stage.auxiliary_rate})
        self.optimizer = new_optimizer(groups, work.settings)
        self.wrapped = trainer.fabric.setup_optimizers(self.optimizer)
        if trainer.batch_norm == "train":
            self.weights |= running_statistics(learner.student)  # chosen and averaged with their weights
        self.averagers = [new() for new in work.stage.averagers]
        if not any(averager.over_steps for averager in self.averagers):
            common = trainer.average(work.stage, last)
            self.averagers = ([common] if common is not None else []) + self.averagers
        for averager in self.averagers:
            averager.begin(self.weights, work.settings.steps)
        self.start = copied(self.weights) if any(averager.from_start for averager in self.averagers) else {}
        self.handed_on: Weights = {}  # from the stage before
        self.in_pieces = (
            work.stage.trains != "projector" and trainer.batch_norm == "eval" and trainer.fabric.world_size == 1
        )
        self.at_once = 0  # images of each domain; 0: not chosen yet
        self.step = 0
        self.images = 0  # seen since the last evaluation
        self.on_gpu = trainer.fabric.device.type == "cuda"
        self.ends_early = trainer.config.steps == "auto" and work.stage.trains != "projector"
        self.no_better = 0  # validations since the best one
        self.best: Scores | None = None
        self.best_weights: Weights = {}

    def train(self) -> Checkpoint:
        """Go through the steps that are left; return the checkpoint that ends the stage."""
        settings, name = self.work.settings, self.work.stage.name
        every = settings.eval_every or max(1, settings.steps // 10)
        batches = self.work.batches.between(self.step * settings.accumulate, settings.steps * settings.accumulate)
        meter, loss = _Meter(), ""
        self.train_mode()  # evaluations give it back
        self.trainer.progress(name, self.step, settings.steps, "")
        while self.step < settings.steps and not (self.ends_early and self.no_better >= PATIENCE):
            raise_dropped_signal()
            terms = self.optimise(batches)
            self.step += 1
            meter.add(terms)
            for averager in self.averagers:
                averager.step(self.weights)
            if self.step % every == 0 or self.step == settings.steps:
                means = meter.means()  # waits for the device
                self._check_finite(means["loss"])
                trained = meter.seconds()
                scores = self._evaluate()
                rate = learning_rate(settings, self.step - 1)
                row = {
                    "stage": name,
                    "step": self.step,
                    **means,
                    "lr": rate,
                    "seconds": meter.seconds(),
                    "evaluation_seconds": meter.seconds() - trained,
                    "images_per_second": self.images / trained,
                }
                if self.trainer.fabric.is_global_zero:
                    self.trainer.log.write({**row, "val_accuracy": scores.accuracy, "val_loss": scores.loss})
                meter, self.images = _Meter(), 0
                loss = f"loss {means['loss']:.3f}, "
                if self.step < settings.steps:
                    self._save()
            if not self.on_gpu:
                loss = f"loss {terms['loss'].item():.3f}, "
            so_far = f"validation {self.best.accuracy:.1%}" if self.best else ""
            self.trainer.progress(name, self.step, settings.steps, f"{loss}{so_far}".removesuffix(", "))
        return self._finish()

    def timed(self, steps: int) -> list[float]:
        """Take the first steps without evaluating; return how many seconds each took."""
        batches = self.work.batches.between(0, steps * self.work.settings.accumulate)
        self.train_mode()
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            self.optimise(batches)["loss"].item()  # waits for the device
            seconds.append(time.perf_counter() - start)
        return seconds

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint of this stage, or from the one that ended the stage before."""
        state, tensors = checkpoint.state, checkpoint.tensors
        self.handed_on = under("soup/", tensors)
        for averager in self.averagers:
            averager.take_over(self.handed_on)
        if not state["step"]:
            return
        self.step = state["step"]
        self.no_better = state.get("no_better", 0)
        self.at_once = state.get("at_once", self.work.settings.batch_per_domain)  # another number: other last digits
        self.start = under("start/", tensors)
        with torch.no_grad():
            for key, value in under("regularizer/", tensors).items():
                self.extra[key].copy_(like(value, self.extra[key]))
        self.best = Scores(*state["best"])
        self.best_weights = under("best/", tensors)
        load_optimizer(self.optimizer, under("optimizer/", tensors))
        earlier = "swad" in state  # by a version that had one averager with a state, the first
        numbers = [state["swad"]] if earlier else state["averagers"]
        for number, (averager, own) in enumerate(zip(self.averagers, numbers, strict=False)):
            averages = under("swad/" if earlier else f"average{number}/", tensors)
            parts = {key: like(value, self.weights[key.rpartition("/")[2]]) for key, value in averages.items()}
            if own:
                averager.restore(own, parts)

    def optimise(self, batches: Iterator[tuple[Tensor, Targets]]) -> Terms:
        """Take one optimiser step; return the loss and its terms, on the device."""
        settings, stage, fabric = self.work.settings, self.work.stage, self.trainer.fabric
        drawn = [next(batches) for _ in range(settings.accumulate)]  # before the seed: a new loader draws from it
        self.images += sum(len(x) for x, _ in drawn) * fabric.world_size
        whose = (fabric.global_rank,) if fabric.global_rank else ()
        torch.manual_seed(
            derive(self.trainer.seed, "step", stage.name, self.step, *whose)
        )  # dropout, stochastic depth, mixtures
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate(settings, self.step)
        parts = [self._moved(x, targets) for x, targets in drawn]
        if not self.at_once:
            self.at_once = self._choose_pieces(parts[0][0])
        terms = self.backward(parts)
        if not self.on_gpu:  # there it is checked with the next evaluation: to read it is to wait for the device
            self._check_finite(terms["loss"].item(), self.step + 1)
        if stage.second_pass is not None:

            def again() -> None:
                self.backward(parts)

            stage.second_pass(self.weights, again, whole)
        if settings.clip is not None:
            fabric.clip_gradients(self.model, self.wrapped, max_norm=settings.clip)
        self.wrapped.step()
        return terms

    def _check_finite(self, loss: float, step: int | None = None) -> None:
        if not math.isfinite(loss):
            stage = self.work.stage.name
            raise RunError(
                f"{self.trainer.folder}: the loss of {stage} is {loss} at step {step or self.step}; "
                f"start again with a smaller stages.{stage}.lr (now {self.work.settings.lr:g})"
            )

    def _choose_pieces(self, x: Tensor) -> int:
        """Return how many images of each domain are computed at once: all, unless that takes too much memory."""
        per_domain = self.work.settings.batch_per_domain
        if not self.in_pieces or x.ndim == 2:
            return per_domain
        eagerly = torch.compiler.set_stance("force_eager") if self.trainer.config.compile else nullcontext()
        with self.trainer.fabric.autocast(), eagerly:
            return images_at_once(self.student, per_domain, len(x) // per_domain, x[:1])

    def _moved(self, x: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
        """Return a batch on the device, blended if the stage wants that."""
        device = self.trainer.fabric.device
        x, targets = moved(x, device), replace(targets.to(device), done=self.step / self.work.settings.steps)
        return self.work.stage.blend(x, targets) if self.work.stage.blend else (x, targets)

    def backward(self, parts: Sequence[tuple[Tensor, Targets]]) -> Terms:
        """Replace the gradient by that of the parts' mean loss; return the loss and its terms.

        What doesn't fit into memory is tried again in smaller pieces.
        """
        while True:
            try:
                return self._gradient(parts)
            except (MemoryError, RuntimeError) as error:
                if self.at_once <= 1 or not self.in_pieces or not is_out_of_memory(error):
                    raise
                self.at_once = smaller(self.at_once, self.work.settings.batch_per_domain)
                warnings.warn(
                    f"{self.work.stage.name}: too little memory; a step now takes {self.at_once} images of each "
                    "domain at once, which changes no more than the last digits",
                    VL2VWarning,
                    stacklevel=2,
                )
            self.optimizer.zero_grad()
            if self.trainer.fabric.device.type == "cuda":
                torch.cuda.empty_cache()

    def _gradient(self, parts: Sequence[tuple[Tensor, Targets]]) -> Terms:
        stage, fabric, per_domain = self.work.stage, self.trainer.fabric, self.work.settings.batch_per_domain
        self.optimizer.zero_grad()
        if stage.pairs and self.at_once < per_domain:
            totals = [self._whole_batch(x, targets, len(parts)) for x, targets in parts]
        else:
            each = per_domain // self.trainer.part[1]
            cut = [piece for x, targets in parts for piece in pieces(x, targets, each, min(each, self.at_once))]
            totals = [self._piece(x, targets, number, len(cut)) for number, (x, targets) in enumerate(cut, 1)]
        mean = torch.stack([torch.stack([*terms.values()]) for terms in totals]).mean(0)
        if fabric.world_size > 1:
            reduced = fabric.all_reduce(mean)
            assert isinstance(reduced, Tensor)
            mean = reduced
        return dict(zip(totals[0], mean.unbind(), strict=True))

    def _piece(self, x: Tensor, targets: Targets, number: int, count: int) -> dict[str, Tensor]:
        """Add the gradient of one of some pieces; return its terms."""
        fabric = self.trainer.fabric
        with fabric.no_backward_sync(self.model, enabled=fabric.world_size > 1 and number < count):
            terms = self.work.stage.training_step(self.model(x), targets)
            fabric.backward(terms["loss"] / count)
        return {name: term.detach().float() for name, term in terms.items()}

    def _whole_batch(self, x: Tensor, targets: Targets, count: int) -> dict[str, Tensor]:
        """Add the gradient of a loss of all images at once, without having all of their activations at once.

        The features of all are computed first, and once more, piece by piece, for the gradient to pass through (Gao et
        al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021).
        """
        fabric, domains = self.trainer.fabric, len(x) // self.work.settings.batch_per_domain
        chunks = x.split(self.at_once * domains)
        states, found = [], []
        with torch.no_grad():
            for chunk in chunks:
                states.append(torch.get_rng_state())
                found.append(self.model(chunk, features_only=True))
        features = torch.cat(found).requires_grad_(True)
        terms = self.work.stage.training_step(self.model(features), targets)
        fabric.backward(terms["loss"] / count)
        assert features.grad is not None
        after = torch.get_rng_state()
        for chunk, state, gradient in zip(chunks, states, features.grad.split(self.at_once * domains), strict=True):
            torch.set_rng_state(state)  # the same dropout
            fabric.backward(self.model(chunk, features_only=True), gradient)
        torch.set_rng_state(after)
        return {name: term.detach().float() for name, term in terms.items()}

    def train_mode(self) -> None:
        """Put the student's parts into the modes that they train in."""
        self.model.train()
        if self.work.stage.trains == "projector":
            self.student.backbone.eval()
        for module in self.student.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                frozen = module.weight is not None and not module.weight.requires_grad
                module.train(module.training and self.trainer.batch_norm == "train" and not frozen)

    def _evaluate(self) -> Scores:
        scores = self._scores()
        self.no_better += 1
        if scores.better_than(self.best):
            self.no_better = 0
            self.best = scores
            self.best_weights = copied(self.weights)
        for averager in self.averagers:
            averager.evaluate(scores.loss)
        return scores

    def _scores(self) -> Scores:
        """Return how well the student does; what the first process found counts for all."""
        scores: Scores = self.trainer.fabric.broadcast(self.work.validation.score(self.model))
        return scores

    def _score(self, weights: Weights) -> Scores:
        load(self.student, weights)
        return self._scores()

    def _save(self) -> None:
        assert self.best is not None
        states = [averager.state() for averager in self.averagers]
        averages = {f"average{number}": tensors for number, (_, tensors) in enumerate(states)}
        best = [self.best.accuracy, self.best.loss]
        self._write(
            {
                "stage": self.number,
                "step": self.step,
                "best": best,
                "averagers": [n for n, _ in states],
                "at_once": self.at_once,
                "no_better": self.no_better,
            },
            model=self.student.state_dict(),
            best=self.best_weights,
            optimizer=optimizer_tensors(self.optimizer),
            regularizer=self.extra,
            start=self.start,
            soup=self.handed_on,
            **averages,
        )

    def _finish(self) -> Checkpoint:
        """Put the chosen weights into the student and write the checkpoint that the next stage starts from."""
        assert self.best is not None
        best = self.trainer.config.select == "best"
        trained = self.best_weights if best else copied(self.weights)
        chosen, hands_on = trained, dict[str, Tensor]()
        for averager in self.averagers:
            found = averager.finish(chosen, self.start, self._score)
            chosen = chosen if found is chosen else copied(found)
            hands_on |= averager.hands_on
        load(self.student, chosen)
        scores = self.best if best and chosen is trained else self._scores()
        make_whole(self.given, self.student)
        state = {"stage": self.number + 1, "step": 0, "scores": [scores.accuracy, scores.loss]}
        self._write(state, model=self.given.state_dict(), soup=hands_on)
        return Checkpoint({f"soup/{key}": value for key, value in hands_on.items()}, state)

    def _write(self, state: dict[str, Any], **groups: Weights) -> None:
        """Write a checkpoint of whole tensors: every process has a part in each, the first one keeps them."""
        first, tensors = self.trainer.fabric.is_global_zero, {}
        for group, members in groups.items():
            for key, value in members.items():
                gathered = whole(value)
                if first:
                    tensors[f"{group}/{key}"] = gathered.cpu()
        if first:
            name = f"{state['stage']:02d}-{state['step']:08d}"
            save_checkpoint(self.trainer.folder / "checkpoints", name, Checkpoint(tensors, state))


class _Meter:
    """Means of the loss and its terms, read from the device when they are wanted, and seconds, since an evaluation."""

    def __init__(self) -> None:
        self.terms: dict[str, list[Tensor]] = {}
        self.start = time.perf_counter()

    def add(self, terms: Terms) -> None:
        for name, value in terms.items():
            self.terms.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        return {name: sum(torch.stack(values).tolist()) / len(values) for name, values in self.terms.items()}

    def seconds(self) -> float:
        return time.perf_counter() - self.start
