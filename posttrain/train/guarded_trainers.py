"""The guarded subclasses of trl's DPO and GRPO trainers: how each divides its micro-batches."""

from typing import Any

from posttrain.model.device import free_memory
from posttrain.model.rollouts import cheaper_rollouts
from posttrain.train.guard import guarded, is_out_of_memory
from posttrain.train.micro_batches import (
    Batch,
    Part,
    completions_as_text,
    join_scores,
    pair_count,
    pairs_as_text,
    split_completions,
    split_pairs,
)


def samples_plainly(arguments: Any) -> bool:
    """Whether a GRPOConfig asks for sampling at a temperature and for nothing else."""
    others = ("top_k", "min_p", "cache_implementation", "generation_kwargs")
    return (
        arguments.top_p == 1
        and arguments.repetition_penalty == 1
        and not any(getattr(arguments, name) for name in others)
    )


ONE_COMPLETION_OF = 32
"""Of so many completions, one is scored to see how far sampling is from training."""


def guarded_dpo(trainer_class: Any) -> Any:
    """The guarded subclass of a DPOTrainer."""

    class GuardedDPO(guarded(trainer_class)):  # type: ignore[misc]
        loss_weights: list[float]
        train_sampler: Any = None
        """Draws the training rows; None is transformers' own choice."""

        @property
        def _total_train_tokens(self) -> int:
            """trl's count of tokens, kept in the trainer state, which a checkpoint saves."""
            return int(self.state.num_input_tokens_seen)

        @_total_train_tokens.setter
        def _total_train_tokens(self, count: int) -> None:
            self.state.num_input_tokens_seen = count

        def _get_train_sampler(self, *rows: Any) -> Any:
            if self.train_sampler is not None:
                return self.train_sampler
            return super()._get_train_sampler(*rows)

        def count(self, batch: Batch) -> int:
            return pair_count(batch)

        def split(self, batch: Batch) -> list[Part]:
            rows = self.rows_at_once or pair_count(batch)
            return split_pairs(batch, rows, self.loss_types, self.loss_weights)

        def divisible(self) -> bool:
            """Whether the loss is a sum over pairs. aot sorts the pairs, and others mix means."""
            return not (
                {"aot", "aot_unpaired"} & set(self.loss_types)
                or ("sft" in self.loss_types and self.use_weighting)
                or self.aux_loss_enabled
            )

        def rows_as_text(self, batch: Batch) -> list[dict[str, Any]]:
            return pairs_as_text(batch, self.processing_class.decode)

        def learnable(self, batch: Batch) -> Any:
            """Above 0 if the micro-batch has something to learn from, which pairs always have."""
            return batch["input_ids"].new_ones(())

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            own = self.loss_weights
            if self._batch is not None:
                self.loss_weights = list(self._parts[self._next].loss_weights)
            try:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            finally:
                self.loss_weights = own

        def _save_before_attempt(self) -> None:
            super()._save_before_attempt()
            self._tokens = self._total_train_tokens

        def _undo_attempt(self) -> None:
            super()._undo_attempt()
            self._total_train_tokens = self._tokens

    return GuardedDPO


def guarded_grpo(trainer_class: Any) -> Any:
    """The guarded subclass of a GRPOTrainer. Generation, scoring and training each find their own
    batch size."""

    class GuardedGRPO(guarded(trainer_class)):  # type: ignore[misc]
        prompts_at_once: int | None = None
        """How many prompts to generate for at once; None is all of them."""
        scored_at_once: int | None = None
        """How many completions to score at once without a gradient; None is trl's own size."""
        rows_at_once: int | None
        current_gradient_accumulation_steps: float
        _sampled: list[list[float]]
        """Log-probabilities that the completions' tokens were sampled with; empty if unknown."""

        def _get_train_sampler(self, *rows: Any) -> Any:
            """trl's, but the order of an epoch depends on the seed and the epoch alone. trl goes on
            from the epochs before, which a resumed run does not draw."""
            sampler = super()._get_train_sampler(*rows)
            if sampler.shuffle:
                sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(
                    sampler.seed + epoch
                )
            return sampler

        def count(self, batch: Batch) -> int:
            return len(batch["completion_ids"])

        def split(self, batch: Batch) -> list[Part]:
            return split_completions(batch, self.rows_at_once or self.count(batch), self.loss_type)

        def divisible(self) -> bool:
            """Whether the loss is a sum over completions. It is not with a quantile of their tokens
            or with an entropy bonus, which have means of their own."""
            return not (
                self.top_entropy_quantile < 1
                or self._entropy_bonus_enabled
                or self.aux_loss_enabled
            )

        def rows_as_text(self, batch: Batch) -> list[dict[str, Any]]:
            return completions_as_text(batch, self.processing_class.decode, self.reward_func_names)

        def learnable(self, batch: Batch) -> Any:
            """Above 0 if some completion has an advantage other than 0."""
            return batch["advantages"].abs().max()

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            """Weight a part's loss by changing the number that it is divided by. Multiplying the
            loss would change nothing with Unsloth, whose backward pass ignores the factor."""
            whole = self.current_gradient_accumulation_steps
            if self._batch is not None:
                self.current_gradient_accumulation_steps = whole / self._parts[self._next].weight
            try:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            finally:
                self.current_gradient_accumulation_steps = whole

        def _before_next_part(self) -> None:
            self._step -= 1  # trl counts micro-batches in training_step

        def _calculate_rewards(self, *arguments: Any) -> Any:
            self._rewards = super()._calculate_rewards(*arguments)
            return self._rewards

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            """trl's micro-batch with one more entry: `rewards`, of shape (B, reward functions)."""
            self._sampled = []
            batch = super()._generate_and_score_completions(inputs)
            if self._sampled and self.model.training:
                self._log_sampling_difference(batch, self._sampled)
            rows = len(batch["completion_ids"])
            first = self.accelerator.process_index * rows  # trl has gathered those of all processes
            return {**batch, "rewards": self._rewards[first : first + rows]}

        def _log_sampling_difference(self, batch: Batch, sampled: list[list[float]]) -> None:
            """Log how far the log-probabilities that tokens were sampled with are from those that
            are trained on, in some of the completions, under the names that trl has for vLLM."""
            import torch

            found = []
            for row in range(0, len(batch["completion_ids"]), ONE_COMPLETION_OF):
                # Without padding, around which Unsloth's scores are shifted.
                prompt, completion = (
                    batch[f"{part}_ids"][row][batch[f"{part}_mask"][row].bool()][None]
                    for part in ("prompt", "completion")
                )
                ids, length = torch.cat([prompt, completion], 1), completion.shape[1]
                if not length:  # a completion that is masked because it was cut
                    continue
                with torch.no_grad():
                    trained = self._get_per_token_logps_and_entropies(
                        self.model, ids, torch.ones_like(ids), length
                    )[0]
                drawn = torch.tensor(sampled[row][:length], device=trained.device)
                found.append((trained[0] - drawn).abs())
            apart = torch.cat(found) if found else torch.full((1,), torch.nan, device=ids.device)
            gathered = self.accelerator.gather(torch.stack([apart.mean(), apart.max()])[None])
            known = gathered[~gathered.isnan().any(1)]  # of the processes that scored any
            if len(known):
                metrics, name = self._metrics["train"], "sampling/sampling_logp_difference"
                metrics[f"{name}/mean"].append(known[:, 0].mean().item())
                metrics[f"{name}/max"].append(known[:, 1].max().item())

        def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **named: Any) -> Any:
            if self.watch is None or self.use_vllm or self.use_transformers_continuous_batching:
                return super()._generate_single_turn(prompt_ids, *rest, **named)
            checkpointing = self.model.is_gradient_checkpointing
            plain = samples_plainly(self.args)
            while True:
                rows = self.prompts_at_once or len(prompt_ids)
                try:
                    ids: list[Any] = []
                    with cheaper_rollouts(self.model, self.temperature, plain) as log_probs:
                        for start in range(0, len(prompt_ids), rows):
                            some = prompt_ids[start : start + rows]
                            ids += super()._generate_single_turn(some, *rest, **named)[0]
                    self._sampled = log_probs
                    return ids, None
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                if checkpointing and not self.model.is_gradient_checkpointing:
                    # trl turns it off to generate; after an error it does not turn it on again.
                    options = self.args.gradient_checkpointing_kwargs
                    self.model.gradient_checkpointing_enable(options)
                free_memory()
                rows = min(rows, len(prompt_ids))
                if rows == 1:
                    self.watch.no_room("generation", rows)
                self.prompts_at_once = (rows + 1) // 2
                self.watch.halved("generation", rows, self.prompts_at_once)

        def _get_per_token_logps_and_entropies(
            self, model: Any, ids: Any, mask: Any, *rest: Any, **named: Any
        ) -> Any:
            """Score completions without a gradient, in fewer rows at once if memory runs out.

            trl has `batch_size` for this, but Unsloth ignores it and packs all rows into one.
            """
            import torch

            score = super()._get_per_token_logps_and_entropies
            if self.watch is None or torch.is_grad_enabled():
                return score(model, ids, mask, *rest, **named)
            while True:
                rows = min(self.scored_at_once or len(ids), len(ids))
                parts = [slice(at, at + rows) for at in range(0, len(ids), rows)]
                try:
                    scores = [score(model, ids[p], mask[p], *rest, **named) for p in parts]
                    return join_scores(scores)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                free_memory()
                rows = min(rows, named.get("batch_size") or rows)
                if rows == 1:
                    self.watch.no_room("scoring", rows)
                self.scored_at_once = (rows + 1) // 2
                self.watch.halved("scoring", rows, self.scored_at_once)

    return GuardedGRPO
