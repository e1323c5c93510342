"""The guarded subclass of trl's GRPOTrainer: how it samples, scores and divides micro-batches."""

from typing import Any

from posttrain.model.fewer_tokens import SharedPrompts, can_share
from posttrain.model.merged import sampling_weights
from posttrain.model.rollouts import cheaper_rollouts
from posttrain.train.guard import guarded, is_out_of_memory, ordered_by_epoch
from posttrain.train.micro_batches import COMPLETION_LOSSES, Batch, Part, split_completions


def samples_plainly(arguments: Any) -> bool:
    """Whether a GRPOConfig samples at a temperature and with no other option."""
    others = ("top_k", "min_p", "cache_implementation", "generation_kwargs")
    return (
        arguments.top_p == 1
        and arguments.repetition_penalty == 1
        and not any(getattr(arguments, name) for name in others)
    )


CLIP_RATIOS = {
    *("clip_ratio/region_mean", "clip_ratio/low_mean", "clip_ratio/high_mean"),
    *("clip_ratio/low_min", "clip_ratio/high_max"),
}
ONE_COMPLETION_OF = 32  # of so many, one is scored to see how far sampling is from training


def guarded_grpo(trainer_class: Any) -> Any:
    """The guarded subclass, whose generation, scoring and training each find a batch size."""
    unsloth = any(kind.__name__.startswith("Unsloth") for kind in trainer_class.__mro__)

    class GuardedGRPO(guarded(trainer_class)):  # type: ignore[misc]
        prompts_at_once: int | None = None  # to generate for at once; None is all
        scored_at_once: int | None = None  # completions, without a gradient; None is trl's own size
        current_gradient_accumulation_steps: float
        _sampled: list[list[float]]  # log-probabilities of the sampled tokens; empty if unknown

        def _get_train_sampler(self, *rows: Any) -> Any:
            sampler = super()._get_train_sampler(*rows)
            return ordered_by_epoch(sampler, sampler.seed) if sampler.shuffle else sampler

        def count(self, batch: Batch) -> int:
            return len(batch["completion_ids"])

        def split(self, batch: Batch, rows: int) -> list[Part]:
            return split_completions(batch, rows, self.loss_type)

        def divisible(self) -> bool:
            """Whether the loss is a sum over completions or tokens. A quantile of the tokens and an
            entropy bonus add means that are not known here."""
            return self.loss_type in COMPLETION_LOSSES and not (
                self.top_entropy_quantile < 1
                or self._entropy_bonus_enabled
                or self.aux_loss_enabled
            )

        def _clipping(self) -> set[str]:
            """The metrics of how much was clipped, which the trainer logs with this loss."""
            if self.loss_type == "cispo":
                return {"cispo_clip_ratio"}
            clipped = {"grpo", "bnpo", "dr_grpo", "dapo"} | (set() if unsloth else {"luspo"})
            return CLIP_RATIOS if self.loss_type in clipped else set()

        def _is_flat(self, batch: Batch) -> bool:
            """Whether its gradient is 0: all advantages are 0 and nothing else is in the loss."""
            return (
                self.beta == 0
                and not self._entropy_bonus_enabled
                and not self.aux_loss_enabled
                and bool(batch["flat"].all())
            )

        def rows_as_text(self, batch: Batch) -> list[dict[str, Any]]:
            """Prompt, completion, advantage and rewards of each row."""
            rows = []
            for i, advantage in enumerate(batch["advantages"].tolist()):
                prompt, completion = (
                    self.processing_class.decode(self._tokens_of(batch, part, i))
                    for part in ("prompt", "completion")
                )
                rewards = zip(self.reward_func_names, batch["rewards"][i].tolist(), strict=True)
                own = {"advantage": advantage, "rewards": dict(rewards)}
                rows.append({"prompt": prompt, "completion": completion, **own})
            return rows

        def _tokens_of(self, batch: Batch, part: str, row: int) -> Any:
            """The ids of a row's prompt or completion, (tokens,), without padding."""
            return batch[f"{part}_ids"][row][batch[f"{part}_mask"][row].bool()]

        def learnable(self, batch: Batch) -> Any:
            """Above 0 if a completion that is not all masked has an advantage other than 0."""
            return (batch["advantages"] * batch["completion_mask"].any(1)).abs().max()

        def compute_loss(self, model: Any, inputs: Any, **options: Any) -> Any:
            """Weight a part's loss by changing the number that it is divided by. Multiplying the
            loss would change nothing with Unsloth, whose backward pass ignores the factor.

            The loss of a flat micro-batch is a 0 that needs no pass through the model. Its backward
            pass gives every weight a gradient, so that the optimizer steps as it would have.
            """
            if self._batch is None:  # an evaluation
                return super().compute_loss(model, inputs, **options)
            if self._is_flat(self._batch):
                import torch

                for name in self._clipping():
                    self._metrics["train"][name].append(0.0)
                sums = [weight.sum(dtype=torch.float32) for weight in self.watch.weights]
                return 0 * torch.stack(sums).sum()
            steps = self.current_gradient_accumulation_steps
            self.current_gradient_accumulation_steps = steps / self._parts[self._next].weight
            try:
                return super().compute_loss(model, inputs, **options)
            finally:
                self.current_gradient_accumulation_steps = steps

        def _before_next_part(self) -> None:
            if self._step % self.current_gradient_accumulation_steps == 0:  # trl took the time
                self._current_train_step_time = self._metrics["train"]["step_time"].pop()
            self._step -= 1  # trl counts micro-batches in training_step

        def _calculate_rewards(self, *arguments: Any) -> Any:
            self._rewards = super()._calculate_rewards(*arguments)
            return self._rewards

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            """trl's micro-batch with two more entries: `rewards`, (B, reward functions), and on the
            CPU `flat`, (B,): whether the advantage is 0."""
            self._sampled = []
            batch = super()._generate_and_score_completions(inputs)
            if self._sampled and self.model.training:
                self._log_sampling_difference(batch, self._sampled)
            flat = (batch["advantages"] == 0).cpu()
            return {**batch, "rewards": self._rewards, "flat": flat}

        def _log_sampling_difference(self, batch: Batch, sampled: list[list[float]]) -> None:
            """Log how far the log-probabilities that tokens were sampled with are from those that
            are trained on, in some of the completions, under the names that trl has for vLLM."""
            import torch

            apart = []
            for row in range(0, len(batch["completion_ids"]), ONE_COMPLETION_OF):
                # Without padding, around which Unsloth's scores are shifted.
                completion = self._tokens_of(batch, "completion", row)
                ids = torch.cat([self._tokens_of(batch, "prompt", row), completion])[None]
                length = len(completion)
                if not length:  # a completion that is masked because it was cut
                    continue
                with torch.no_grad():
                    trained = self._get_per_token_logps_and_entropies(
                        self.model, ids, torch.ones_like(ids), length
                    )[0]
                drawn = torch.tensor(sampled[row][:length], device=trained.device)
                apart.append((trained[0] - drawn).abs())
            if apart:
                nats, metrics = torch.cat(apart), self._metrics["train"]
                metrics["sampling/sampling_logp_difference/mean"].append(nats.mean().item())
                metrics["sampling/sampling_logp_difference/max"].append(nats.max().item())

        def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **named: Any) -> Any:
            if self.watch is None or self.use_vllm or self.use_transformers_continuous_batching:
                return super()._generate_single_turn(prompt_ids, *rest, **named)
            checkpointing = self.model.is_gradient_checkpointing
            plain = samples_plainly(self.args)
            while True:
                rows = self.prompts_at_once or len(prompt_ids)
                try:
                    ids: list[Any] = []
                    with (
                        sampling_weights(self.model)  # beams, for one, multiply the rows
                        if self.args.generation_kwargs
                        else cheaper_rollouts(self.model, self.temperature, plain)
                    ) as log_probs:
                        for start in range(0, len(prompt_ids), rows):
                            some = prompt_ids[start : start + rows]
                            ids += super()._generate_single_turn(some, *rest, **named)[0]
                    self._sampled = log_probs or []
                    return ids, None
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                if checkpointing and not self.model.is_gradient_checkpointing:
                    # trl turns it off to generate; after an error it does not turn it on again.
                    options = self.args.gradient_checkpointing_kwargs
                    self.model.gradient_checkpointing_enable(options)
                self.watch.halve("generation", min(rows, len(prompt_ids)))

        def _get_per_token_logps_and_entropies(
            self, model: Any, ids: Any, mask: Any, *rest: Any, **named: Any
        ) -> Any:
            """Score completions with what their prompts share computed once; without a gradient,
            in fewer rows at once if memory runs out.

            trl has `batch_size` for this, but Unsloth ignores it and packs all rows into one. Its
            scores are wider than the completions by the left padding of the most padded row:
            narrower parts are padded on the left with zeros, which the loss masks.
            """
            import torch

            score = super()._get_per_token_logps_and_entropies
            if not unsloth and can_share(self.model):
                model = SharedPrompts(model, rest[0])
            if self.watch is None or torch.is_grad_enabled():
                return score(model, ids, mask, *rest, **named)
            while True:
                size = min(self.scored_at_once or len(ids), len(ids))
                parts = [slice(at, at + size) for at in range(0, len(ids), size)]
                try:
                    scores = [score(model, ids[p], mask[p], *rest, **named) for p in parts]
                    if len(scores) == 1:
                        return scores[0]
                    rows = [row for log_probs, *_ in scores for row in log_probs]
                    padded = torch.nn.utils.rnn.pad_sequence(rows, True, padding_side="left")
                    return padded, None, None
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                self.watch.halve("scoring", min(size, named.get("batch_size") or size))

    return GuardedGRPO
