"""A fused LoRA layer computes what peft's does: outputs and gradients; other kinds stay peft's."""

from typing import Any

import pytest

from posttrain.model.adapter import remember_start
from posttrain.model.policy import fuse

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, on import


def adapted(**kind: Any) -> Any:
    """A linear layer of 12 to 20 with an adapter that has an effect."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = torch.nn.Sequential()
    base.add_module("proj", torch.nn.Linear(12, 20))
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["proj"], **kind)
    policy = get_peft_model(base, config)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return policy


def layer_of(policy: Any) -> Any:
    return policy.base_model.model.proj


def passed(layer: Any, x: Any) -> list[Any]:
    """The output, and the gradients of input and adapter."""
    import torch

    torch.manual_seed(1)  # of dropout
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = layer(x)
    out.square().sum().backward()
    trained = [w.grad.clone() for name, w in layer.named_parameters() if "lora_" in name]
    return [out.detach(), x.grad, *trained]


def test_other_kinds_are_left_alone() -> None:
    for kind in ("use_dora", "lora_bias"):
        policy = adapted(**{kind: True})
        fuse(policy)
        assert "forward" not in vars(layer_of(policy))


@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"lora_dropout": 0.5}])
def test_the_same_but_for_rounding(kind: dict[str, Any]) -> None:
    import torch

    policy = adapted(**kind)
    layer, x = layer_of(policy), torch.randn(3, 5, 12)
    expected = passed(layer, x)
    fuse(policy)
    assert "forward" in vars(layer)
    for result, wanted in zip(passed(layer, x), expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5)
    policy.eval()
    with policy.disable_adapter():
        assert torch.equal(layer(x), layer.base_layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # peft's own way, in the types of autocast
        assert torch.equal(layer(x), type(layer).forward(layer, x))


def test_in_bfloat16_it_is_as_near_to_exact_as_pefts_own() -> None:
    import torch

    exact = adapted()
    x = torch.randn(3, 5, 12).bfloat16().float()
    rounded = layer_of(adapted())
    rounded.base_layer.to(torch.bfloat16)
    layer_of(exact).base_layer.load_state_dict(rounded.base_layer.state_dict())
    wanted = passed(layer_of(exact), x)
    pefts = passed(rounded, x.bfloat16())
    policy = adapted()
    layer_of(policy).base_layer.to(torch.bfloat16)
    fuse(policy)
    fused = passed(layer_of(policy), x.bfloat16())
    assert [each.dtype for each in fused] == [each.dtype for each in pefts]
    for mine, other, right in zip(fused, pefts, wanted, strict=True):
        error, allowed = ((each - right).norm() / right.norm() for each in (mine, other))
        assert error < 3 * allowed + 0.004  # half of a last place of bfloat16


def test_a_reference_with_dropout_is_not_random() -> None:
    import torch

    policy = adapted(lora_dropout=0.5).train()
    remember_start(policy)
    x = torch.randn(3, 5, 12)
    with policy.disable_adapter():
        first, second = policy(x), policy(x)
    assert torch.equal(first, second)
    assert not torch.equal(policy(x), policy(x))  # the policy has its dropout back


def test_a_signal_while_the_reference_gives_way_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    policy = adapted(lora_dropout=0.5).train()
    remember_start(policy)
    train, signals = torch.nn.Dropout.train, iter([KeyboardInterrupt])

    def interrupted(module: Any, mode: bool = True) -> Any:
        for signal in signals if mode else ():
            raise signal
        return train(module, mode)

    monkeypatch.setattr(torch.nn.Dropout, "train", interrupted)
    with pytest.raises(KeyboardInterrupt), policy.disable_adapter():
        pass
    assert layer_of(policy).lora_dropout["default"].training
