"""AutoCompressor (Llama 2) by its repository's class: `auto_compressor.py` of
github.com/princeton-nlp/AutoCompressors, with what it imports, and the weights in `model/`, both
beside this file."""

import os

from protocol import serve, texts_of

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "model")


def open_rival(hello):
    """Load once; the passages of a question become summary vectors, which it is answered from."""
    import torch
    from auto_compressor import LlamaAutoCompressorModel
    from transformers import AutoTokenizer

    device = os.environ.get("RIVAL_DEVICE", "cuda")
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = LlamaAutoCompressorModel.from_pretrained(FOLDER, torch_dtype=torch.bfloat16)
    model = model.eval().to(device)

    def ids_of(text):
        tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        return tokens.input_ids.to(device)

    def answer(request):
        summary = model(ids_of("\n\n".join(texts_of(request))), output_softprompt=True).softprompt
        prompt = ids_of(f"Question: {request['question']}\nAnswer:")
        made = model.generate(
            prompt, do_sample=False, softprompt=summary, max_new_tokens=hello["max_new_tokens"]
        )
        text = tokenizer.decode(made[0][prompt.shape[1] :], skip_special_tokens=True)
        return {"answer": text.strip().split("\n")[0], "context_tokens": int(summary.shape[1])}

    return answer


if __name__ == "__main__":
    serve(open_rival)
