"""The tensors of a case, for the peers and for lxpod."""

import numpy as np
from safetensors.numpy import save_file

NAMES = ("input_ids", "attention_mask", "token_type_ids", "visual_feats", "visual_pos", "visual_attention_mask")
TOKEN_INPUTS, IMAGE_INPUTS = NAMES[:3], NAMES[3:]
OUTPUT = "question_answering_score"

SEED = 0
BOXES = 36
CLS, SEP, PAD = 101, 102, 0
FIRST_WORD = 1000


def tokens(case, vocabulary, rng):
    """Token inputs of a case: [CLS] words [SEP], then padding."""
    ids = np.full((case.batch, case.padded_to), PAD, np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(case.lengths):
        ids[row, :length] = [CLS, *rng.integers(FIRST_WORD, vocabulary, length - 2), SEP]
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def images(count, config, rng):
    """Image inputs with one entry per distinct image: non-negative features and boxes (x1, y1, x2, y2) in [0, 1]."""
    corners = np.sort(rng.random((count, BOXES, 2, 2), np.float32), axis=2)
    return {
        "visual_feats": np.abs(rng.standard_normal((count, BOXES, config["visual_feat_dim"]), np.float32)),
        "visual_pos": corners.reshape(count, BOXES, config["visual_pos_dim"]),
        "visual_attention_mask": np.ones((count, BOXES), np.float32),
    }


def build(case, config):
    """The compact inputs of a case: images once each, and `image_index` says which one a question is on."""
    rng = np.random.default_rng(SEED)
    index = np.arange(case.batch, dtype=np.int64) % case.images
    return {**tokens(case, config["vocab_size"], rng), **images(case.images, config, rng), "image_index": index}


def expanded(compact):
    """The inputs as Transformers takes them: an image per question. Keys are NAMES, in order."""
    index = compact["image_index"]
    return {name: compact[name][index] if name in IMAGE_INPUTS else compact[name] for name in NAMES}


def save(compact, path):
    """Writes the inputs as a file lxpod reads."""
    save_file(compact, path)
