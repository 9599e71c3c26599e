"""The loss, against a computation of its own: turn by turn, unpadded, one forward pass each, on a plain model."""

import math

import pytest
import torch
from trl import GRPOTrainer

from spiral_trl.training import trainer as trainer_module


SGD = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "max_steps": 1}


def role_conditioned_advantages(batch, decay=0.95):
    """`[game][seat]`, by the paper's moving average: read, then update."""
    baselines = [0.0, 0.0]
    advantages = []
    for returns in batch.outcomes.returns.tolist():
        advantages.append([r - b for r, b in zip(returns, baselines, strict=True)])
        baselines = [decay * b + (1 - decay) * r for r, b in zip(returns, baselines, strict=True)]
    return advantages


def rows_of(batch):
    """(prompt ids, completion ids, advantage) of every turn of every game."""
    advantages = role_conditioned_advantages(batch)
    return [
        (step.reply.prompt_ids, step.reply.completion_ids, advantages[g][step.turn.player])
        for g, episode in enumerate(batch.episodes())
        for step in episode.steps
    ]


def token_logps(model, prompt, completion):
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.float(), -1)[torch.arange(len(completion)), list(completion)]


def loss_by_hand(model, rows, normaliser, old=None, epsilon=0.2):
    """Sum over tokens of -min(ratio A, clip(ratio) A) / normaliser, and how many tokens the clip acts on."""
    total, clipped = torch.zeros(()), 0
    for i, (prompt, completion, advantage) in enumerate(rows):
        logps = token_logps(model, prompt, completion)
        ratio = torch.exp(logps - (logps.detach() if old is None else old[i]))
        bounded = ratio.clamp(1 - epsilon, 1 + epsilon)
        total = total - torch.minimum(ratio * advantage, bounded * advantage).sum()
        clipped += int((bounded * advantage < ratio * advantage).sum())
    return total / normaliser, clipped


def descend(model, loss, learning_rate):
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= learning_rate * gradient
    return max(gradient.abs().max().item() for gradient in gradients)


def assert_equal_parameters(found, expected, tolerance=1e-5):
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


NORMALISERS = {
    "dr_grpo": lambda rows: len(rows) * 3,  # turns x max_completion_length
    "dapo": lambda rows: sum(len(completion) for _, completion, _ in rows),  # tokens
}


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("loss_type", ["dr_grpo", "dapo"])
def test_a_step_is_the_hand_computed_gradient(make_trainer, load_model, parameters, loss_type, micro_batches):
    trainer = make_trainer(loss_type=loss_type, gradient_accumulation_steps=micro_batches, **SGD)
    trainer.train()
    rows = rows_of(trainer.last_batch)
    if micro_batches > 1:
        assert len(rows) % micro_batches, "no padding row in this batch: choose another number of games"

    model = load_model()
    loss, _ = loss_by_hand(model, rows, NORMALISERS[loss_type](rows))
    largest = descend(model, loss, SGD["learning_rate"])
    assert largest > 0.01
    assert_equal_parameters(parameters(trainer), parameters(model))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_lengths_differ_so_that_the_two_normalisers_do(make_trainer):
    trainer = make_trainer(**SGD)
    trainer.train()
    rows = rows_of(trainer.last_batch)
    assert {len(completion) for _, completion, _ in rows} > {3}
    assert NORMALISERS["dr_grpo"](rows) != NORMALISERS["dapo"](rows)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_a_second_iteration_takes_clipped_ratios_to_the_policy_that_played(
    make_trainer, load_model, parameters, micro_batches
):
    settings = SGD | {"learning_rate": 3.0, "max_steps": 2}
    trainer = make_trainer(num_iterations=2, gradient_accumulation_steps=micro_batches, **settings)
    trainer.train()
    rows = rows_of(trainer.last_batch)

    model = load_model()
    old = [token_logps(model, prompt, completion).detach() for prompt, completion, _ in rows]
    first, clipped = loss_by_hand(model, rows, len(rows) * 3, old)
    assert clipped == 0
    descend(model, first, settings["learning_rate"])
    second, clipped = loss_by_hand(model, rows, len(rows) * 3, old)
    assert clipped > 0
    descend(model, second, settings["learning_rate"])
    assert_equal_parameters(parameters(trainer), parameters(model), 1e-4)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx([first.item(), second.item()], abs=1e-5)


def test_a_generation_spent_in_several_optimizer_steps_weighs_each_row_alike(make_trainer, load_model, parameters):
    # Two steps with half the rows each; rows are shuffled, so the halves are read from the trainer
    halves = []
    trainer = make_trainer(steps_per_generation=2, **SGD | {"max_steps": 2})
    compute_loss = trainer._compute_loss

    def noting(model, inputs):
        halves.append({name: inputs[name].clone() for name in ("completion_mask", "advantages")})
        return compute_loss(model, inputs)

    trainer._compute_loss = noting
    trainer.train()
    rows = rows_of(trainer.last_batch)
    assert len(halves) == 2
    assert sum(int(half["completion_mask"].any(1).sum()) for half in halves) == len(rows)
    # On-policy, the value of the loss is the sum of its advantages; the first half is on-policy
    expected = -(halves[0]["completion_mask"].sum(1) * halves[0]["advantages"]).sum() / (len(rows) * 3 / 2)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_truncated_replies_are_left_out_where_asked(make_trainer, load_model, parameters):
    trainer = make_trainer(mask_truncated_completions=True, **SGD)
    trainer.train()
    rows = rows_of(trainer.last_batch)
    eos = trainer._tokenizer.eos_token_id
    kept = [row for row in rows if row[1][-1] == eos]
    assert 0 < len(kept) < len(rows)
    model = load_model()
    loss, _ = loss_by_hand(model, kept, len(rows) * 3)
    descend(model, loss, SGD["learning_rate"])
    assert_equal_parameters(parameters(trainer), parameters(model))


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_merging_equal_rows_changes_nothing_but_the_number_of_rows_computed(
    make_trainer, load_model, parameters, monkeypatch, tmp_path, beta
):
    computed = []
    forward = GRPOTrainer._get_per_token_logps_and_entropies

    def counting(self, model, input_ids, *args, **kwargs):
        computed.append(len(input_ids))
        return forward(self, model, input_ids, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", counting)
    settings = {"num_iterations": 2, "gradient_accumulation_steps": 3, "beta": beta, **SGD, "max_steps": 4}
    settings["games_per_generation"] = 128

    def run(folder):
        computed.clear()
        trainer = make_trainer(output_dir=str(tmp_path / folder), **settings)
        trainer.train()
        return parameters(trainer), sum(computed)

    merged, few = run("merged")
    monkeypatch.setattr(trainer_module, "distinct_rows", lambda ids, mask: None)
    single, many = run("single")
    assert few < many / 2
    assert_equal_parameters(merged, single)
    assert any(not torch.allclose(merged[name], start, atol=1e-2) for name, start in parameters(load_model()).items())


# ------------------------------------------------------------------------------------------------------- the magnet


def kl_inputs(trainer, prompt, completions):
    """Rows of one prompt with nothing but the KL term to learn from; the normaliser is one."""
    n, ids = len(completions), torch.tensor(completions)
    inputs = {
        "prompt_ids": torch.tensor([prompt] * n),
        "prompt_mask": torch.ones(n, len(prompt), dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": torch.ones_like(ids),
        "advantages": torch.zeros(n),
        "num_items_in_batch": torch.tensor(1.0),
    }
    whole = torch.cat([inputs["prompt_ids"], ids], 1)
    with torch.no_grad():
        inputs["ref_per_token_logps"] = trainer._get_per_token_logps_and_entropies(
            trainer.ref_model, whole, torch.ones_like(whole), ids.size(1)
        )[0]
    return inputs


@pytest.fixture
def drifted(make_trainer, load_model):
    """A trainer with a magnet whose policy has moved away from the reference, and the two as plain models."""
    trainer = make_trainer(beta=0.7)
    trainer.current_gradient_accumulation_steps = 1
    policy, reference = load_model(), load_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter, own in zip(policy.parameters(), trainer.model.parameters(), strict=True):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            own.copy_(parameter)
    trainer.model.train()
    prompt = trainer._tokenizer.apply_chat_template(
        [{"role": "user", "content": "player 1 card Q history bet"}], add_generation_prompt=True, return_dict=False
    )
    return trainer, policy, reference, prompt


def gradients(loss, model):
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, model.parameters(), strict=True)]


def test_the_magnet_is_the_reverse_kl_gradient_in_expectation_over_every_token(drifted):
    trainer, policy, reference, prompt = drifted
    ids = torch.tensor([prompt])
    logps = torch.log_softmax(policy(ids).logits[0, -1], -1)
    with torch.no_grad():
        reference_logps = torch.log_softmax(reference(ids).logits[0, -1], -1)
    divergence = (logps.exp() * (logps - reference_logps)).sum()
    assert divergence > 0.05
    expected = gradients(0.7 * divergence, policy)

    probabilities = logps.detach().exp()
    found = [torch.zeros_like(p) for p in policy.parameters()]
    for token in range(len(probabilities)):
        loss = trainer._compute_loss(trainer.model, kl_inputs(trainer, prompt, [[token]]))
        for total, gradient in zip(found, gradients(loss, trainer.model), strict=True):
            total += probabilities[token] * gradient
    assert max(g.abs().max() for g in expected) > 0.01
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_magnet_on_a_batch_is_the_log_ratio_times_the_score_of_each_token(drifted):
    trainer, policy, reference, prompt = drifted
    vocabulary = trainer._tokenizer.get_vocab()
    replies = [["Q", "[call]", "<|end|>"], ["K", "[fold]", "<|end|>"], ["Q", "[bet]", "Q"]]
    completions = [[vocabulary[word] for word in reply] for reply in replies]
    loss = trainer._compute_loss(trainer.model, kl_inputs(trainer, prompt, completions))
    expected = torch.zeros(())
    for completion in completions:
        logps = token_logps(policy, prompt, completion)
        with torch.no_grad():
            log_ratio = logps - token_logps(reference, prompt, completion)
        expected = expected + 0.7 * (log_ratio * logps).sum()
    for one, other in zip(gradients(loss, trainer.model), gradients(expected, policy), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


class Scores:
    """Notes what policy and reference say about one fixed text after every step."""

    def __init__(self, trainer, text="player 0 card J history none"):
        self.trainer = trainer
        prompt = [{"role": "user", "content": text}]
        ids = trainer._tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        self.ids = torch.tensor([ids + [trainer._tokenizer.get_vocab()[word] for word in ("J", "[check]")]])
        self.policy, self.reference = [self.score(trainer.model)], [self.score(trainer.ref_model)]

    @torch.no_grad()
    def score(self, model):
        ones = torch.ones_like(self.ids)
        return self.trainer._get_per_token_logps_and_entropies(model, self.ids, ones, 2)[0]


def note_scores(trainer):
    from transformers import TrainerCallback

    scores = Scores(trainer)

    class Note(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            scores.policy.append(scores.score(trainer.model))
            scores.reference.append(scores.score(trainer.ref_model))

    trainer.add_callback(Note())
    return scores


@pytest.mark.parametrize("given_as", ["folder", "instance"])
def test_the_reference_stays_frozen_between_refreshes_and_then_is_the_policy(make_trainer, load_model, given_as):
    model = None
    if given_as == "instance":
        model = load_model()
        with torch.no_grad():
            # Unlike what is in the folder, which TRL builds the reference from
            model.lm_head.weight *= 1.5
    trainer = make_trainer(model=model, beta=0.3, sync_ref_model=True, ref_model_sync_steps=2, max_steps=5)
    scores = note_scores(trainer)
    assert torch.equal(scores.reference[0], scores.policy[0])
    trainer.train()

    policy, reference = scores.policy, scores.reference
    assert all(not torch.allclose(policy[i], policy[i + 1], atol=1e-3) for i in range(5))
    assert torch.equal(reference[1], reference[0])
    assert torch.equal(reference[2], policy[2])
    assert torch.equal(reference[3], policy[2])
    assert torch.equal(reference[4], policy[4])
    assert torch.equal(reference[5], policy[4])
    logged = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert logged[0] == pytest.approx(0, abs=1e-7) and logged[2] == pytest.approx(0, abs=1e-7)
    assert logged[1] > 1e-5 and logged[3] > 1e-5


def test_without_refreshes_the_reference_is_the_first_policy(make_trainer):
    trainer = make_trainer(beta=0.3, max_steps=3)
    scores = note_scores(trainer)
    trainer.train()
    assert all(torch.equal(score, scores.policy[0]) for score in scores.reference)
    assert not torch.allclose(scores.policy[-1], scores.policy[0], atol=1e-3)


def test_a_model_that_is_nowhere_saved_has_no_reference(make_trainer):
    from spiral_trl.training.tiny import build_tiny_model

    model, tokenizer = build_tiny_model(0)
    with pytest.raises(ValueError, match="save the model and pass its folder"):
        make_trainer(model=model, processing_class=tokenizer, beta=0.1)


def test_expected_advantages_differ_by_role():
    # The helper above is itself checked, on numbers worked by hand
    class Batch:
        class outcomes:
            returns = torch.tensor([[1.0, -1.0], [2.0, -2.0], [-1.0, 1.0]])

    found = role_conditioned_advantages(Batch)
    assert found[0] == [1.0, -1.0]
    assert found[1] == pytest.approx([1.95, -1.95])
    assert math.isclose(found[2][0], -1 - (0.95 * 0.05 + 0.05 * 2))


# --------------------------------------------------------------------------------------------- engines such as vLLM


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_the_difference_between_engine_and_model_is_corrected_for(make_trainer, load_model, parameters, shift):
    # The engine samples like the model and reports log-probabilities that are off by `shift`
    trainer = make_trainer(vllm_importance_sampling_mode="token_truncate", **SGD)
    words = trainer._tokenizer.get_vocab()
    replies = [["J", "[check]", "<|end|>"], ["K", "[bet]", "<|end|>"], ["Q", "[call]", "<|end|>"], ["Q", "[fold]"]]
    replies.append(["J", "[bet]", "<|end|>"])
    plain, asked = load_model(), []

    def engine(prompts):
        completions = [[words[word] for word in replies[(len(asked) + i) % 5]] for i in range(len(prompts))]
        asked.extend(prompts)
        logps = [token_logps(plain, *pair).detach() - shift for pair in zip(prompts, completions, strict=True)]
        return completions, [row.tolist() for row in logps]

    trainer.use_vllm = True
    trainer.player.engine = engine
    trainer.train()
    rows = rows_of(trainer.last_batch)
    assert len({completion for _, completion, _ in rows}) == 5

    model = load_model()
    loss, _ = loss_by_hand(model, rows, len(rows) * 3)
    descend(model, loss * math.exp(shift), SGD["learning_rate"])
    assert_equal_parameters(parameters(trainer), parameters(model))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item() * math.exp(shift), abs=1e-5)


def test_an_engine_without_log_probabilities_cannot_be_corrected_for(make_trainer):
    trainer = make_trainer(**SGD)
    trainer.use_vllm = True
    trainer.player.engine = lambda prompts: ([[5, 6] for _ in prompts], None)
    with pytest.raises(ValueError, match="no log-probabilities; set vllm_importance_sampling_correction=False"):
        trainer.train()
    trainer = make_trainer(vllm_importance_sampling_correction=False, **SGD)
    trainer.use_vllm = True
    trainer.player.engine = lambda prompts: ([[5, 6] for _ in prompts], None)
    trainer.train()
    assert "self_play/illegal_rate" in trainer.state.log_history[0]
