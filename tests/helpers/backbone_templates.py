"""Chat templates of the kinds there are, shortened."""

from __future__ import annotations

LOOP = "{% for m in messages %}"
CHATML = (
    LOOP + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINK = (  # as Qwen3's: the prompt has an empty think block that the assistant's turn has not
    LOOP + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
PHI = (
    LOOP + "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] ~ '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}"
    "{% endif %}{{ bos_token }}{% for m in rest %}{% if m['role'] == 'user' %}"
    " [INST] {{ system }}{{ m['content'] }} [/INST]{% else %} {{ m['content'] }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
MISTRAL_OLD = (  # takes no system turn, and says so in words of its own
    "{{ bos_token }}" + LOOP + "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
    "{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    + LOOP
    + "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DEAF = (  # passes over the system turn without a word, as nano's own
    LOOP + "{% if m['role'] == 'user' %}Q: {{ m['content'] }}\n{% elif m['role'] == 'assistant' %}"
    "A: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
LLAMA = (  # a header around every role, the end of the turn as a token of its own
    "{{ bos_token }}" + LOOP + "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# name: (template, what the answer's turn ends with)
TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>\n"),
    "think": (THINK, "<|im_end|>\n"),
    "phi": (PHI, "<|end|></s>"),
    "mistral": (MISTRAL_SYSTEM, "</s>"),
    "old mistral": (MISTRAL_OLD, "</s>"),
    "llama": (LLAMA, "<|eot_id|>"),
    "gemma": (GEMMA, "<end_of_turn>\n"),
    "deaf": (DEAF, "</s>"),
    "none": (None, "</s>"),
}
