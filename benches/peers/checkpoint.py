"""The model every engine runs: a Hugging Face folder, its fingerprint, and its f32 form in torch."""

import hashlib
import json

from errors import PeerError

FILES = ("config.json", "model.safetensors")
SEED = 0
ANSWERS = 1842
NOISE = 0.02


def check(folder):
    """Fails unless `folder` holds a checkpoint in one file."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise PeerError(f"{folder} lacks {' and '.join(missing)}; --model takes a Hugging Face folder with both")


def fingerprint(folder):
    """SHA-256 over configuration and weights, in hexadecimal."""
    digest = hashlib.sha256()
    for name in FILES:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def config(folder):
    """The fields of config.json."""
    return json.loads((folder / "config.json").read_text())


def make_random(folder):
    """Writes a full-size seeded random model to `folder`, unless it is there.

    Vectors (biases, scales) get noise on top of their constant initial value, so that an engine that drops one is
    found out.
    """
    if all((folder / name).is_file() for name in FILES):
        return
    import torch
    from transformers import LxmertConfig, LxmertForQuestionAnswering

    torch.manual_seed(SEED)
    model = LxmertForQuestionAnswering(LxmertConfig(num_qa_labels=ANSWERS))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(NOISE * torch.randn_like(parameter))
    model.save_pretrained(folder)


def load(folder):
    """The checkpoint upcast to f32, as a torch module from the tensors of `inputs.NAMES`, in order, to the logits."""
    import torch
    from transformers import LxmertForQuestionAnswering

    model, info = LxmertForQuestionAnswering.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        absent = sorted(info["missing_keys"]) or info["mismatched_keys"]
        raise PeerError(f"{folder} is not a question-answering checkpoint: no fitting weights for {absent[0]}")

    class Scores(torch.nn.Module):
        """`question_answering_score` alone, from positional inputs."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(
            self, input_ids, attention_mask, token_type_ids, visual_feats, visual_pos, visual_attention_mask
        ):
            return self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                visual_feats=visual_feats,
                visual_pos=visual_pos,
                visual_attention_mask=visual_attention_mask,
            ).question_answering_score

    return Scores().eval()
