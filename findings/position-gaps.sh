#!/usr/bin/env bash
# A gap between position ids hides the text before it, but only where no cache is kept.
#
# Guess:    position_ids say where tokens stand for the rotary embedding; who sees whom follows from
#           the attention mask, and use_cache changes speed and memory, not the result.
# Happens:  with use_cache=False and no attention mask, a step of more than one between two positions
#           is taken for the border of two packed texts: what follows a gap no longer sees what stands
#           before it. With use_cache=True, or with a mask of ones, it does. No error, no warning.
# Versions: transformers==5.24.0 torch==2.13.0
# Matters:  positions with gaps are what soft compression with spread positions, position
#           interpolation and skip-wise training (PoSE) use; training runs with use_cache=False and
#           answers with it, so a model is trained on half of its context and asked over all of it.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0
"$folder/env/bin/pip" install -q transformers==5.24.0
cat > "$folder/try.py" <<'PYTHON'
import torch
import transformers

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
)
model = transformers.LlamaForCausalLM(config).eval()


def first_token_counts(positions, **given):
    """Whether the last token's logits change with the first token."""
    with torch.no_grad():
        logits = [
            model(torch.tensor([[first, 2, 3, 4]]), position_ids=torch.tensor([positions]), **given)
            .logits[0, -1]
            for first in (1, 9)
        ]
    return bool((logits[0] - logits[1]).abs().max() > 1e-6)


print("transformers", transformers.__version__)
seen = {}
for name, given in (
    ("use_cache=True", {"use_cache": True}),
    ("use_cache=False", {"use_cache": False}),
    ("use_cache=False, mask of ones", {"use_cache": False, "attention_mask": torch.ones(1, 4)}),
):
    seen[name] = [first_token_counts(p, **given) for p in ([0, 1, 2, 3], [0, 1, 5, 6])]
    print(f"{name}: the last token sees the first: without a gap {seen[name][0]}, with {seen[name][1]}")
assert list(seen.values()) == [[True, True], [True, False], [True, True]], "it has changed"
PYTHON
"$folder/env/bin/python" "$folder/try.py"
