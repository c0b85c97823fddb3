#!/usr/bin/env bash
# PEFT takes dense layers of a mixture of experts for the experts, and leaves them without LoRA.
#
# Guess:    LoRA with target_modules="all-linear", or with the full name of a linear layer, adapts
#           every linear layer of that name.
# Happens:  for kinds whose experts were linear layers in transformers 4 (DeepSeek-V3, GLM-4 MoE,
#           Qwen3-Next, ...), PEFT turns the names gate_proj, up_proj and down_proj into those of
#           the experts' parameters, wherever they stand. Dense layers and shared experts, which are
#           linear layers still, get no adapter; nothing says so. Named as parameters
#           (target_parameters=["...gate_proj.weight"]) they do.
# Versions: peft==0.21.2 transformers==5.24.0 torch==2.13.0
# Matters:  those layers stay as they were while everybody believes that all of them train.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0
"$folder/env/bin/pip" install -q transformers==5.24.0 peft==0.21.2
cat > "$folder/try.py" <<'PYTHON'
import warnings
from importlib.metadata import version

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

warnings.simplefilter("ignore")
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "moe_intermediate_size": 16,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
}
LAYERS = ("layers.0.mlp.down_proj", "layers.1.mlp.shared_experts.down_proj")


def adapted(**targets):
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**SIZES))
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert all(f"model.{layer}" in linear for layer in LAYERS)
    names = dict(get_peft_model(model, LoraConfig(r=4, **targets)).named_parameters())
    return {layer: any(f"{layer}.lora_A" in name for name in names) for layer in LAYERS}


print("peft", version("peft"), "transformers", version("transformers"))
every = adapted(target_modules="all-linear")
named = adapted(target_modules=[f"model.{layer}" for layer in LAYERS] + ["o_proj"])
as_parameters = adapted(target_modules=["o_proj"], target_parameters=[f"{x}.weight" for x in LAYERS])
for title, found in (("all-linear", every), ("by name", named), ("as parameters", as_parameters)):
    print(title, found)
assert not any([*every.values(), *named.values()]), "they have adapters now"
assert all(as_parameters.values()), "it changed"
PYTHON
"$folder/env/bin/python" "$folder/try.py"
