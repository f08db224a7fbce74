"""Any PyTorch token-classification model as the teacher: its outputs, written once as arrays.

    python experiments/torch_teacher.py MODEL OUT train.txt dev.txt unlabelled.txt
    xdistil distil --train train.txt --dev dev.txt --unlabelled unlabelled.txt \\
        --teacher.outputs OUT --strategy logit-ce

Needs torch. Start it several times, each on its share of the text, to fill OUT from several
processes; what is there already is written again and counts once.
"""

import sys

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from xdistil_jax import DataSpec, OutputsWriter, load_corpus


def main(name: str, out: str, train: str, dev: str, unlabelled: str, batch: int = 32) -> None:
    """Write states of the last layer and logits for every sentence that a student may see."""
    tokenizer = AutoTokenizer.from_pretrained(name, add_prefix_space=True)
    model = AutoModelForTokenClassification.from_pretrained(name).eval()
    corpus = load_corpus(DataSpec(train=train, dev=dev, unlabelled=(unlabelled,)))
    sentences = sorted({s.words for s in (*corpus.train, *corpus.transfer)}, key=len)
    tags = [model.config.id2label[number] for number in range(model.config.num_labels)]
    width = model.config.hidden_size
    with OutputsWriter(out, tags=tags, width=width) as writer, torch.inference_mode():
        for start in range(0, len(sentences), batch):
            part = sentences[start : start + batch]
            given = tokenizer(
                [list(words) for words in part], is_split_into_words=True, padding=True,
                return_tensors="pt",
            )  # fmt: skip
            said = model(**given, output_hidden_states=True)
            for row, words in enumerate(part):
                states, logits = said.hidden_states[-1][row].numpy(), said.logits[row].numpy()
                writer.add(words, states, logits, word_of=given.word_ids(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
