"""Any PyTorch token-classification model as the teacher: its outputs, written once as arrays.

    python experiments/torch_teacher.py MODEL OUT train.txt dev.txt unlabelled.txt
    xdistil distil --train train.txt --dev dev.txt --unlabelled unlabelled.txt \\
        --teacher.outputs OUT --strategy logit-ce

Needs torch. Start it several times, each on its share of the text, to fill OUT from several
processes; what is there already is written again and counts once.
"""

import argparse

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, BatchEncoding

from xdistil_jax import DataSpec, OutputsWriter, load_corpus
from xdistil_jax.terminal import told


def write(model: str, out: str, train: str, dev: str, unlabelled: str, batch: int = 32) -> None:
    """Write states of the last layer and logits for every sentence that a student may see."""
    tokenizer = AutoTokenizer.from_pretrained(model, add_prefix_space=True)
    encoder = AutoModelForTokenClassification.from_pretrained(model).eval()
    longest = min(tokenizer.model_max_length, 512)

    def cut(parts: list[list[str]]) -> BatchEncoding:
        options = {"truncation": True, "max_length": longest, "padding": True}
        return tokenizer(parts, is_split_into_words=True, return_tensors="pt", **options)

    def parts_of(words: list[str]) -> list[list[str]]:
        """A sentence that is too long is halved, until each word is read."""
        if len(words) == 1 or len(words) - 1 in cut([words]).word_ids():
            return [words]
        return parts_of(words[: len(words) // 2]) + parts_of(words[len(words) // 2 :])

    corpus = load_corpus(DataSpec(train=train, dev=dev, unlabelled=(unlabelled,)))
    sentences = sorted({s.words for s in (*corpus.train, *corpus.transfer)}, key=len)
    tags = [encoder.config.id2label[number] for number in range(encoder.config.num_labels)]
    width = encoder.config.hidden_size
    with OutputsWriter(out, tags=tags, width=width) as writer, torch.inference_mode():
        for start in range(0, len(sentences), batch):
            chosen = [parts_of(list(words)) for words in sentences[start : start + batch]]
            given = cut([part for parts in chosen for part in parts])
            said = encoder(**given, output_hidden_states=True)
            row = 0
            for parts in chosen:
                words, word_of, rows = [], [], slice(row, row + len(parts))
                for part in parts:
                    word_of += [n if n is None else n + len(words) for n in given.word_ids(row)]
                    words, row = words + part, row + 1
                states, logits = said.hidden_states[-1][rows], said.logits[rows]
                writer.add(
                    words,
                    states.flatten(0, 1).numpy(),
                    logits.flatten(0, 1).numpy(),
                    word_of=word_of,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for what in ("model", "out", "train", "dev", "unlabelled"):
        parser.add_argument(what)
    with told("torch_teacher.py"):
        write(**vars(parser.parse_args()))
