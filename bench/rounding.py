"""What rounding merged weights to 16 bits takes back of the training, by the size of the adapter.

    python bench/rounding.py --tokenizer FOLDER --output bench/results/rounding.json

At the exact shape of Qwen2.5-0.5B, weights random in bfloat16, an adapter of rank 16 on all seven
projections with B drawn at different sizes: Adam at a learning rate of 1e-5 moves each weight of B
by at most 1e-5 a step. Logits are computed in float32 on random tokens, except where the type's own
arithmetic is asked about. Root mean squares, over the standard deviation of the logits:

- `adapter_effect`: what the adapter changes;
- `rounding`: merged weights against base plus adapter; `lost` is its share of `adapter_effect`;
- `largest_logit_difference`: the same, the largest of all logits, absolute;
- `arithmetic`: the merged model computed in its own type against float32.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from bench.command import finish, machine, parser
from posttrain.export.merge import merge
from posttrain.export.models import adapter_model
from tests.helpers import make_adapter, make_qwen

SPREADS = (1e-4, 3e-4, 1e-3, 3e-3)
TYPES = ("bfloat16", "float16", "float32")


def rms(logits: Any) -> float:
    return float(logits.double().square().mean().sqrt())


def measure(base: Path, spread: float, folder: Path) -> dict[str, Any]:
    """One adapter, merged into every type."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    ids = torch.randint(0, 150_000, (4, 64))

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model(input_ids=ids.to(model.device), use_cache=False).logits.float().cpu()

    adapter = make_adapter(base, folder / "adapter", spread)
    policy = adapter_model(base, adapter).model
    trained = logits(policy)
    with policy.disable_adapter():
        effect = rms(logits(policy) - trained)
    spread_of_logits = rms(trained - trained.mean(-1, keepdim=True))
    row: dict[str, Any] = {"b_std": spread, "adapter_effect": round(effect / spread_of_logits, 6)}
    for name in TYPES:
        merge(adapter_model(base, adapter).model, base, adapter, name, folder / name)
        merged = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
        exact = logits(merged)
        for weight in merged.parameters():  # rotary frequencies stay in float32
            weight.data = weight.data.to(getattr(torch, name))
        computed = logits(merged)
        row[name] = {
            "rounding": round(rms(exact - trained) / spread_of_logits, 7),
            "lost": round(rms(exact - trained) / effect, 5),
            "largest_logit_difference": round(float((exact - trained).abs().max()), 6),
            "arithmetic": round(rms(computed - exact) / spread_of_logits, 5),
        }
    return row


def main() -> int:
    command = parser(__doc__)
    command.add_argument("--tokenizer", type=Path, required=True, help="folder of Qwen2.5's")
    command.add_argument("--spread", type=float, action="append", help="of B (default: four)")
    arguments = command.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        base = make_qwen(Path(name) / "base", arguments.tokenizer)
        for spread in arguments.spread or SPREADS:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(base, spread, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "what": "merging a LoRA of rank 16, alpha 32, at the shape of Qwen2.5-0.5B, random weights",
        "adapters": rows,
        **machine(["torch", "transformers", "peft"]),
    }
    return finish(result, arguments.output)


if __name__ == "__main__":
    sys.exit(main())
