#!/usr/bin/env bash
# LLMLingua-2 leaves far less of several texts than the rate it is asked for.
#
# Guess:    compress_prompt([text, text], rate=0.9) leaves about nine tenths of both texts.
# Happens:  with more than one text, its default `use_context_level_filter=True` first drops whole
#           texts (of two always the one that scores lower, whatever the rate), then prunes what is
#           left by `rate` again; the result's list is shorter than the input's. At 0.9 about half
#           is left; with use_context_level_filter=False about nine tenths.
# Versions: llmlingua==0.2.2 nltk==3.10.4 tiktoken==0.14.0 transformers==5.24.0 torch==2.13.0
# Matters:  a comparison "at equal ratio" with retrieved passages as a list compares with another
#           ratio, and the passage that holds the answer may be gone as a whole.
#
# The weights are random (a BERT of two layers): what is dropped is arbitrary, how much is not. Its
# constructor fetches a vocabulary of OpenAI's to count tokens; the words are counted here instead.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q llmlingua==0.2.2 nltk==3.10.4 tiktoken==0.14.0 \
  transformers==5.24.0 torch==2.13.0
cat > "$folder/try.py" <<'PYTHON'
import sys
from importlib.metadata import version

import tiktoken
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

TEXTS = [
    "the mayor of the old town is nora and she has been mayor for ten years",
    "bread is made of flour water and salt and is baked in a hot oven for an hour",
]
words = sorted({word for text in TEXTS for word in text.split()})
vocabulary = {w: n for n, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
)
folder = sys.argv[1] + "/bert-base-multilingual-cased"  # the package tells models by such names
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
    sep_token="[SEP]", mask_token="[MASK]", model_max_length=512,
).save_pretrained(folder)
torch.manual_seed(0)
config = BertConfig(
    vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=64, max_position_embeddings=512, initializer_range=0.5, num_labels=2,
    pad_token_id=0,
)
BertForTokenClassification(config).save_pretrained(folder)


class Words:
    def encode(self, text):
        return text.split()


tiktoken.encoding_for_model = lambda name: Words()
from llmlingua import PromptCompressor  # noqa: E402

print("llmlingua", version("llmlingua"), "transformers", version("transformers"))
compressor = PromptCompressor(folder, device_map="cpu", use_llmlingua2=True)
total = sum(len(text.split()) for text in TEXTS)
shares = []
for more in ({}, {"use_context_level_filter": False}):
    left = compressor.compress_prompt(list(TEXTS), rate=0.9, **more)["compressed_prompt_list"]
    shares.append(sum(len(text.split()) for text in left) / total)
    print(more or "default", "texts left:", len(left), "of 2; tokens left:", f"{shares[-1]:.2f}")
sys.exit(0 if shares[0] < 0.6 and shares[1] > 0.75 else 1)
PYTHON
"$folder/env/bin/python" "$folder/try.py" "$folder" 2> "$folder/errors" || {
  tail -5 "$folder/errors"; exit 1; }
